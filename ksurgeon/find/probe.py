"""Prove what a region of data movement does by running it on an index-coded tensor."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ksurgeon.find.movement import Region
from ksurgeon.find.tracer import attribute_of

__all__ = ["moved_dimension", "run_region"]


def run_region(module: nn.Module, region: Region, value: Tensor) -> Tensor:
    """What the region makes of ``value``; sizes computed outside the region are as recorded."""
    known: dict[fx.Node, Any] = {region.source: value}

    def resolve(node: fx.Node) -> Any:
        if node in known:
            return known[node]
        return attribute_of(module, str(node.target)) if node.op == "get_attr" else node.meta["value"]

    for node in region.nodes:
        args, kwargs = map_arg(node.args, resolve), map_arg(node.kwargs, resolve)
        if node.op == "call_module":
            known[node] = module.get_submodule(str(node.target))(*args, **kwargs)
        elif node.op == "call_method":
            known[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    result: Tensor = known[region.sink]
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
            return dim, tuple(permutation.tolist())
        return None
    return None
