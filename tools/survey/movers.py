"""Modules that only reorder their input along one dimension, seen from outside by what they return.

It shares no code with the finder, so that what one of them overlooks the other may see.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["movers"]

_LARGEST = 1 << 18  # entries of an input that is looked at; below 2**24 so that float32 counts them


def movers(model: nn.Module, run: Callable[[], object]) -> dict[str, int]:
    """Dimension along which modules permute the only tensor that they are given, by path.

    Those that change nothing are left out, and those that reorder the examples of a batch.

    Args:
        model: in eval mode.
        run: runs the model once.
    """
    suspects: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    handles = [
        module.register_forward_hook(_suspect(path, suspects), with_kwargs=True)
        for path, module in modules.items()
        if path and not type(module).__module__.startswith("torch.jit")
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, int] = {}
    for path, like in suspects.items():
        codes = torch.arange(like.numel(), dtype=like.dtype, device=like.device).view(like.shape)
        try:
            moved = modules[path](codes)
        except Exception:  # it took the values of the run, and does not take these
            continue
        dim = _moved(codes, moved)
        if dim:
            found[path] = dim
    return found


def _suspect(path: str, suspects: dict[str, Tensor]) -> Any:
    """A hook that notes a module whose output has the entries of its input in another order."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = [*args, *kwargs.values()]
        if path in suspects or len(given) != 1 or not isinstance(given[0], Tensor):
            return
        (value,) = given
        if (
            isinstance(output, Tensor)
            and output.shape == value.shape
            and output.dtype == value.dtype
            and (value.is_floating_point() or value.dtype == torch.int64)
            and 1 < value.numel() <= _LARGEST
            and not torch.equal(output, value)
            and torch.equal(torch.stack(output.aminmax()), torch.stack(value.aminmax()))  # sorting takes long
            and torch.equal(output.flatten().sort().values, value.flatten().sort().values)
        ):
            suspects[path] = value

    return hook


def _moved(codes: Tensor, moved: Any) -> int | None:
    """The dimension along which ``moved`` is ``codes`` in another order, if it is."""
    if not isinstance(moved, Tensor) or moved.shape != codes.shape or torch.equal(moved, codes):
        return None
    for dim in range(codes.dim()):
        first = moved[tuple(slice(None) if d == dim else 0 for d in range(codes.dim()))]
        index = first.to(torch.int64) // codes.stride(dim) % codes.shape[dim]
        if len(index.unique()) == len(index) and torch.equal(codes.index_select(dim, index), moved):
            return dim
    return None
