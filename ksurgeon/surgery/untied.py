"""A replacement whose weight was tied to another module's, and what transformers ties again by name."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["TIED_KEYS", "UntieSwap", "untie_swaps"]

TIED_KEYS = ("_tied_weights_keys", "all_tied_weights_keys")
"""Attributes of transformers' models: from names of tied tensors to those of the tensors they are."""
_MISSING = object()


@dataclass
class UntieSwap:
    """Names of a layer's tensors that transformers no longer ties to others.

    Attributes:
        path: of the layer, seen from the owner.
        before: the owner's own attributes, as they were.
    """

    owner: nn.Module
    path: str
    before: dict[str, Any] = field(default_factory=dict)

    def do(self) -> None:
        for name in TIED_KEYS:
            keys = getattr(self.owner, name, None)
            if isinstance(keys, dict):
                self.before[name] = vars(self.owner).get(name, _MISSING)
                setattr(self.owner, name, {k: v for k, v in keys.items() if not _is_below(k, self.path)})

    def undo(self) -> None:
        for name, value in self.before.items():
            if value is _MISSING:
                delattr(self.owner, name)
            else:
                setattr(self.owner, name, value)


def untie_swaps(model: nn.Module, path: str) -> list[UntieSwap]:
    """A swap for every module that says that a tensor of the layer at ``path`` is tied to another."""
    swaps = []
    for prefix, owner in model.named_modules():
        relative = path if not prefix else path.removeprefix(f"{prefix}.")
        if prefix and relative == path:
            continue
        keys = [getattr(owner, name, None) for name in TIED_KEYS]
        if any(_is_below(key, relative) for each in keys if isinstance(each, dict) for key in each):
            swaps.append(UntieSwap(owner, relative))
    return swaps


def _is_below(name: str, path: str) -> bool:
    return name.startswith(f"{path}.")
