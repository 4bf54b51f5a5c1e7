"""What installed packages add to the registries, by their entry points."""

import logging
from functools import cache
from importlib.metadata import entry_points

__all__ = ["load_plugins"]

_log = logging.getLogger(__name__)


@cache
def load_plugins(group: str) -> tuple[str, ...]:
    """Import once what packages name under a group of entry points, which then registers what it has.

    A package that cannot be imported is told in a warning, and given back as a sentence for the message that
    something is not known.
    """
    failed = []
    for point in entry_points(group=group):
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist is not None else point.value
            failed.append(
                f'the package {package} could not be imported (entry point "{point.name}" of {group}): '
                f"{type(error).__name__}: {error}"
            )
            _log.warning("%s; mend or uninstall it", failed[-1])
    return tuple(failed)
