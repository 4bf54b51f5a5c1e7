"""Attributes of modules as they are now, to be put back after a forward was run or traced."""

from collections import deque
from collections.abc import Collection
from typing import Any

from torch import nn

__all__ = ["Attributes"]

_CONTAINERS = (list, dict, set, deque)


class Attributes:
    """What a module and those below it hold; lists, dictionaries, sets and deques with what is in them.

    Args:
        module: the module.
        ignored: attributes that somebody else puts back.
    """

    def __init__(self, module: nn.Module, ignored: Collection[str] = ()) -> None:
        self._before = []
        self._ignored = ignored
        for path, below in module.named_modules():
            own = vars(below)
            attributes = self._seen(own)
            held = {
                name: value.copy() for name, value in attributes.items() if isinstance(value, _CONTAINERS)
            }
            self._before.append((f"{path}." if path else "", own, attributes, held))

    def restore(self) -> dict[str, Any]:
        """Put everything back; returns what stood under the names that were changed."""
        changed: dict[str, Any] = {}
        for prefix, own, attributes, held in self._before:
            seen = self._seen(own)
            for name, value in seen.items():
                if attributes.get(name, self) is not value:
                    changed[prefix + name] = value
            for name in seen:
                if name not in attributes:
                    del own[name]
            for name, value in attributes.items():
                if own.get(name, self) is not value:
                    own[name] = value
            for name, before in held.items():
                now: Any = own[name]
                if _items(now) != _items(before):
                    changed[prefix + name] = now.copy()
                    now.clear()
                    (now.extend if isinstance(now, (list, deque)) else now.update)(before)
        return changed

    def _seen(self, own: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in own.items() if name not in self._ignored}


def _items(container: Any) -> list[Any]:
    """What is in a container, known by ``id``: its entries may not allow a comparison."""
    if isinstance(container, dict):
        return [(key, id(value)) for key, value in container.items()]
    return [id(value) for value in container]
