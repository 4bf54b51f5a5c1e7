"""Attributes of modules as they are now, to be put back after a forward was traced."""

from typing import Any

from torch import nn

__all__ = ["Attributes"]


class Attributes:
    """What a module and those below it hold; lists, dictionaries and sets with what is in them."""

    def __init__(self, module: nn.Module) -> None:
        self._before = []
        for path, below in module.named_modules():
            own = vars(below)
            held = {name: v.copy() for name, v in own.items() if isinstance(v, (list, dict, set))}
            self._before.append((f"{path}." if path else "", own, own.copy(), held))

    def restore(self) -> dict[str, Any]:
        """Put everything back; returns what stood under the names that were changed."""
        changed: dict[str, Any] = {}
        for prefix, own, attributes, held in self._before:
            for name, value in own.items():
                if attributes.get(name, self) is not value:
                    changed[prefix + name] = value
            own.clear()
            own.update(attributes)
            for name, before in held.items():
                now: Any = own[name]
                if _items(now) != _items(before):
                    changed[prefix + name] = now.copy()
                    now.clear()
                    (now.extend if isinstance(now, list) else now.update)(before)
        return changed


def _items(container: list[Any] | dict[Any, Any] | set[Any]) -> list[Any]:
    """What is in a container, known by ``id``: its entries may not allow a comparison."""
    if isinstance(container, dict):
        return [(key, id(value)) for key, value in container.items()]
    return [id(value) for value in container]
