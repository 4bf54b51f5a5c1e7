"""Prove what a region of data movement does by running it on an index-coded tensor."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ksurgeon.find.movement import Region, is_constant
from ksurgeon.find.tracer import attribute_of
from ksurgeon.torch_private import FakeTensor

__all__ = ["moved_dimension", "run_region"]


def run_region(module: nn.Module, region: Region, value: Tensor) -> Tensor:
    """What the region makes of ``value``; sizes of tensors outside the region are as recorded.

    Raises:
        LookupError: it depends on what is in such a tensor.
    """
    known: dict[fx.Node, Any] = {region.source: value}

    def resolve(node: fx.Node) -> Any:
        if node not in known:
            recorded = node.meta.get("value")
            if node.op == "get_attr":
                present = attribute_of(module, str(node.target))
                known[node] = node.meta.get("attribute") if present is None else present
            elif node.op in ("call_function", "call_method") and (
                is_constant(node) or not isinstance(recorded, Tensor)
            ):
                run(node)
            else:
                known[node] = recorded
        return known[node]

    def run(node: fx.Node) -> None:
        args, kwargs = map_arg(node.args, resolve), map_arg(node.kwargs, resolve)
        if node.op == "call_module":
            known[node] = module.get_submodule(str(node.target))(*args, **kwargs)
        elif node.op == "call_method":
            known[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            known[node] = node.target(*args, **kwargs)  # type: ignore[operator]

    for node in region.nodes:
        run(node)
    result: Tensor = known[region.sink]
    if isinstance(result, FakeTensor):
        raise LookupError("entries of a tensor from outside the region decide what it gives")
    return result


def moved_dimension(module: nn.Module, region: Region) -> tuple[int, tuple[int, ...]] | None:
    """The dimension along which the region permutes, and the permutation p with ``y[i] = x[p[i]]``.

    None if it moves nothing, moves entries along more than one dimension, or drops or repeats any.
    """
    shape = region.source.meta["value"].shape
    codes = torch.arange(shape.numel()).view(shape)
    try:
        moved = run_region(module, region, codes)
    except Exception:
        return None
    if moved.shape != shape or not codes.numel():
        return None
    for dim, size in enumerate(shape):
        line = moved[tuple(slice(None) if k == dim else 0 for k in range(len(shape)))]
        permutation = line // codes.stride(dim) % size
        if torch.equal(permutation, torch.arange(size)):
            continue
        if torch.equal(permutation.sort().values, torch.arange(size)) and torch.equal(
            moved, codes.index_select(dim, permutation)
        ):
            return (dim, tuple(permutation.tolist())) if _holds(module, region, dim, permutation) else None
        return None
    return None


def _holds(module: nn.Module, region: Region, dim: int, permutation: Tensor) -> bool:
    """Whether a larger tensor is permuted likewise, as far as can be told.

    Where there is but one row or column, much looks like a shuffle of channels that is none. A region that
    takes no larger tensor, because sizes in it are fixed, is known by its example alone.
    """
    shape = region.source.meta["value"].shape
    sizes = [size if k == dim else 2 * size for k, size in enumerate(shape)]
    codes = torch.arange(shape.numel() * 2 ** (len(sizes) - 1)).view(sizes)
    try:
        moved = run_region(module, region, codes)
    except Exception:
        return True
    return moved.shape != codes.shape or torch.equal(moved, codes.index_select(dim, permutation))
