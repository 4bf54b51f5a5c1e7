"""Maps before and after a module's forward: children that hooks call, so that the module keeps its class.

The fast path of ``nn.TransformerEncoderLayer``, which reads the weights of its children without calling them,
is not taken where one of them has hooks.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ksurgeon.errors import SurgeryError
from ksurgeon.kmatrix.lazy import plain
from ksurgeon.kmatrix.shuffle import KChannelShuffle

__all__ = ["InsertSwap", "RemoveSwap", "called_alike", "insertions_of"]

_HOOKS = {"before": "_forward_pre_hooks", "after": "_forward_hooks"}


@dataclass(frozen=True)
class _Before:
    """Maps the first argument of a module by the child of that name."""

    child: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not args or not isinstance(args[0], (Tensor, fx.Proxy)):
            raise SurgeryError(
                f"the map that was inserted before this {type(module).__name__} takes its first argument, a "
                f"tensor by position, got {type(args[0]).__name__ if args else 'keyword arguments alone'}"
            )
        return _mapped(module, self.child, args[0]), *args[1:]


@dataclass(frozen=True)
class _After:
    """Maps what a module gives by the child of that name."""

    child: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, (Tensor, fx.Proxy)):
            raise SurgeryError(
                f"the map that was inserted after this {type(module).__name__} takes a tensor, got a "
                f"{type(output).__name__}"
            )
        return _mapped(module, self.child, output)


def _mapped(module: nn.Module, name: str, x: Any) -> Any:
    child = module._modules.get(name)
    if child is None:
        raise SurgeryError(
            f"this {type(module).__name__} has the hook of an inserted map, but not the map, its child "
            f"{name}: something copied the hooks alone, as quantize_dynamic does; call ksurgeon.revert first"
        )
    if not (isinstance(x, Tensor) and x.is_nested and isinstance(child, KChannelShuffle)):
        return child(x)
    if child.dim not in (-1, x.dim() - 1):
        raise SurgeryError(
            f"the map {name} of this {type(module).__name__} is along dimension {child.dim}, got a nested "
            "tensor, which is mapped along the last dimension alone; give nn.TransformerEncoder "
            "enable_nested_tensor=False, or insert with dim = -1"
        )
    return nn.functional.linear(x, plain(child.weight))


@dataclass
class InsertSwap:
    """A child that maps what its owner takes first, or what it gives.

    The hook has the child's name in the place of a number, which one that is registered later may have too
    where the model was pickled meanwhile. Done again, both are where they were among the others.

    ``old`` is the layer that the owner replaces. It shares the owner's hooks, but has not got the child: what
    still holds it gets a copy of them meanwhile.
    """

    owner: nn.Module
    place: str
    name: str
    new: nn.Module
    old: nn.Module | None = None
    shared: bool = False
    followers: tuple[tuple[Any, ...], tuple[Any, ...]] = ((), ())

    def do(self) -> None:
        hooks = vars(self.owner)[_HOOKS[self.place]]
        self.shared = self.old is not None and vars(self.old)[_HOOKS[self.place]] is hooks
        if self.shared:
            vars(self.old)[_HOOKS[self.place]] = hooks.copy()
        hook = _Before(self.name) if self.place == "before" else _After(self.name)
        _put(self.owner._modules, self.name, self.new, self.followers[0])
        _put(hooks, self.name, hook, self.followers[1])
        torch.compiler.reset()  # what was compiled watches no hooks

    def undo(self) -> None:
        hooks = vars(self.owner)[_HOOKS[self.place]]
        self.followers = _take(self.owner._modules, self.name), _take(hooks, self.name)
        if self.shared:
            vars(self.old)[_HOOKS[self.place]] = hooks
        torch.compiler.reset()


@dataclass
class RemoveSwap(InsertSwap):
    """The other way round: the child goes."""

    def do(self) -> None:
        super().undo()

    def undo(self) -> None:
        super().do()


def _put(table: dict[Any, Any], name: str, value: Any, followers: tuple[Any, ...]) -> None:
    """Into a table before the first of the followers that is there, or at the end."""
    items = list(table.items())
    at = next((place for place, (key, _) in enumerate(items) if key in followers), len(items))
    items.insert(at, (name, value))
    table.clear()
    table.update(items)


def _take(table: dict[Any, Any], name: str) -> tuple[Any, ...]:
    """Out of a table, if it is there; what followed."""
    keys = list(table)
    if name not in table:
        return ()
    del table[name]
    return tuple(keys[keys.index(name) + 1 :])


@contextmanager
def called_alike(swaps: Iterable[object]) -> Iterator[None]:
    """Inside the model runs, and afterwards inserted maps were called as often as their owners.

    Raises:
        SurgeryError: an owner calls all its children, the map too.
    """
    inserted = [swap for swap in swaps if isinstance(swap, InsertSwap)]
    calls: Counter[nn.Module] = Counter()

    def count(module: nn.Module, *_: Any) -> None:
        calls[module] += 1

    watched = {module for swap in inserted for module in (swap.owner, swap.new)}
    handles = [module.register_forward_hook(count) for module in watched]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for swap in inserted:
        if calls[swap.owner] != calls[swap.new]:
            raise SurgeryError(
                f"this {type(swap.owner).__name__} calls all its children, and would call a map inserted "
                f"{swap.place} it once more: insert {swap.place} one of its children"
            )


def insertions_of(module: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Place, name and child of every map that was inserted before or after a module."""
    for place, hooks in _HOOKS.items():
        for hook in vars(module)[hooks].values():
            if isinstance(hook, (_Before, _After)) and (child := module._modules.get(hook.child)) is not None:
                yield place, hook.child, child
