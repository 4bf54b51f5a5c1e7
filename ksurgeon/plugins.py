"""What installed packages add to the registries, by their entry points."""

import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

__all__ = ["load_plugins"]

_failed: dict[str, dict[str, str]] = {}  # by group, of those that were loaded


def load_plugins(group: str, register: Callable[[str, Any], object] | None = None) -> dict[str, str]:
    """Load what packages name under a group of entry points, when it is first asked for.

    Args:
        group: such as "ksurgeon.structures".
        register: called with the name of each entry point and what it loads; without one, loading registers.

    Returns:
        Of those that failed, why, by the name of the entry point; a warning has named the package.
    """
    if group in _failed:
        return _failed[group]
    failed = _failed[group] = {}  # before they are loaded: what they import may ask
    for point in entry_points(group=group):
        try:
            loaded = point.load()
            if register is not None:
                register(point.name, loaded)
        except Exception as error:  # whatever another package does
            package = point.dist.name if point.dist is not None else point.value
            failed[point.name] = f"{type(error).__name__}: {error}"
            warnings.warn(
                f'"{point.name}" of the package {package} ({group}) cannot be used: {failed[point.name]}; '
                "update or uninstall that package",
                stacklevel=4,
            )
    return failed
