"""Recognise fixed reorderings along one dimension, however they are spelled."""

from collections.abc import Iterator

import torch
from torch import fx, nn

from ksurgeon.find.match import Match
from ksurgeon.find.movement import Region, is_constant, kept_constants, regions
from ksurgeon.find.probe import moved_dimension, run_region
from ksurgeon.find.sizes import is_fixed
from ksurgeon.find.tracer import Trace

__all__ = ["find_permutations"]


def find_permutations(module: nn.Module, trace: Trace, movers: set[str]) -> Iterator[Match]:
    """Reorderings among the movements of a traced forward, the longest chains first.

    A chain of reorderings along one dimension is one. Those of a size that comes from the input, and those
    whose index the forward makes, are given with a reason why they cannot be replaced.
    """
    undone: set[fx.Node] = set()
    for region in sorted(regions(trace.graph, movers), key=lambda region: -len(region.nodes)):
        if len(region.nodes) == 1 and region.sink.op == "call_module":
            continue  # the child is a site of its own
        if not undone.isdisjoint(region.nodes):
            continue
        if _moves_nothing(module, region):
            undone.update(region.nodes)
            continue
        found = moved_dimension(module, region)
        if found is None or found[0] == 0:
            continue
        dim, permutation = found
        yield Match(
            kind="permutation",
            region=region,
            in_features=len(permutation),
            out_features=len(permutation),
            dim=dim,
            permutation=permutation,
            reason=_reason(module, trace, region, dim),
        )


def _moves_nothing(module: nn.Module, region: Region) -> bool:
    shape = region.source.meta["value"].shape
    codes = torch.arange(shape.numel()).view(shape)
    try:
        return torch.equal(run_region(module, region, codes), codes)
    except Exception:
        return False


def _reason(module: nn.Module, trace: Trace, region: Region, dim: int) -> str | None:
    made = set(kept_constants(trace))
    if any(_reads(node, made) for node in region.nodes):
        return "its index is made inside the forward, perhaps another one every time; keep it as a buffer"
    if _takes_longer(module, region, dim) and not is_fixed(
        module, region.source, region.sink, dim, inside=region.nodes
    ):
        return f"its size along dimension {dim} comes from the input"
    return None


def _reads(node: fx.Node, names: set[str]) -> bool:
    return any(is_constant(n) and (str(n.target) in names or _reads(n, names)) for n in node.all_input_nodes)


def _takes_longer(module: nn.Module, region: Region, dim: int) -> bool:
    """Whether the region takes a tensor of twice the size along the dimension, and gives as many entries."""
    shape = list(region.source.meta["value"].shape)
    shape[dim] *= 2
    try:
        moved = run_region(module, region, torch.zeros(shape))
    except Exception:
        return False
    return list(moved.shape) == shape
