"""What installed packages add to the registries, by their entry points."""

import threading
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

__all__ = ["load_plugins"]

_failed: dict[str, dict[str, str]] = {}  # by group, of those that were loaded
_lock = threading.RLock()


def load_plugins(group: str, register: Callable[[str, Any], object] | None = None) -> dict[str, str]:
    """Load what packages name under a group of entry points, when it is first asked for.

    Args:
        group: such as "ksurgeon.structures".
        register: called with the name of each entry point and what it loads; without one, loading registers.

    Returns:
        Of those that failed, why, by the name of the entry point; a warning has named the package.
    """
    with _lock:  # others wait until all are there; what a package imports may ask meanwhile
        if group in _failed:
            return _failed[group]
        failed, messages = _failed.setdefault(group, {}), list[str]()
        for point in entry_points(group=group):
            try:
                loaded = point.load()
                if register is not None:
                    register(point.name, loaded)
            except Exception as error:  # whatever another package does
                package = point.dist.name if point.dist is not None else point.value
                failed[point.name] = f"{type(error).__name__}: {error}"
                messages.append(
                    f'"{point.name}" of the package {package} ({group}) cannot be used: '
                    f"{failed[point.name]}; update or uninstall that package"
                )
    for message in messages:
        warnings.warn(message, stacklevel=4)
    return failed
