"""Places before and after modules, where a map can be inserted."""

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from ksurgeon.kinds.channel_shuffle import ChannelShuffle
from ksurgeon.kmatrix.structures import Butterfly, Kaleidoscope, Structure, Sum
from ksurgeon.site_kinds import Grid

if TYPE_CHECKING:
    from torch import nn

    from ksurgeon.find import Match, Site
    from ksurgeon.find.tracer import Trace
    from ksurgeon.surgery.record import Operation, Record

__all__ = ["Inserted"]


class Inserted(ChannelShuffle):
    """Maps where there was none: the identity as a permutation, or that of a geometry.

    The finder lists the places apart from the sites, for there are many; see ``find.insertions``.
    """

    name, title, verbs = "insertion", "place for a map", ("insert", "inserted at")
    inserts = True

    def matches(self, module: "nn.Module", trace: "Trace", movers: set[str]) -> "Iterator[Match]":
        yield from ()

    def problem(self, structure: Structure, start: str | None, size: int = 0, grid: Grid = ()) -> str | None:
        if isinstance(structure, (Butterfly, Sum)) or not structure.is_chain:
            return f'structure = "{structure.structure}" cannot be inserted; only one chain of factors can'
        if start == "fit":
            return 'nothing was there to fit to; start is "exact" (the identity), "orthogonal" or "random"'
        if grid and start != "geometry":
            return f'a grid goes with start = "geometry", not "{start}"'
        if start == "geometry":
            return _geometry_problem(structure, size, grid)
        square = not size or all(pattern.b == pattern.c for pattern in structure.patterns(size, size))
        if not square and start not in ("orthogonal", "random"):
            return f'{structure} cannot be the identity; give start = "random", or structure = "kaleidoscope"'
        return None

    def build(self, model: "nn.Module", site: "Site", structure: Structure, start: str) -> "nn.Module":
        import torch

        from ksurgeon.kmatrix.permutation import permutation_
        from ksurgeon.surgery.build import build_shuffle

        assert site.dim is not None
        owner, size = model.get_submodule(site.owner), site.in_features
        like = owner if any(p.dtype.is_floating_point for p in owner.parameters()) else model
        began = {"exact": "identity", "geometry": "empty"}.get(start, start)
        new = build_shuffle(structure, size, 1, site.dim, tuple(range(size)), began, like, owner.training)
        if start == "geometry":
            assert site.permutation is not None
            permutation_(new.matrix, site.permutation)
        dtype = getattr(torch, site.dtype)
        if dtype.itemsize > 2 or any(p.dtype is dtype for p in model.parameters()):  # autocast is no reason
            new.to(dtype)
        return new

    def require_readable(self, model: "nn.Module", record: "Record", operation: "Operation") -> None:
        from ksurgeon.surgery.readable import require_inserted

        require_inserted(model, operation)


def _geometry_problem(structure: Structure, size: int, grid: Grid) -> str | None:
    if not isinstance(structure, Kaleidoscope):
        return (
            'start = "geometry" is a permutation, which structure = "kaleidoscope" holds, '
            f'not "{structure.structure}"'
        )
    if size and (prod(grid or (size,)) != size or size < 3):
        shape = " × ".join(map(str, grid)) or "line"
        return f"{size} entries form no grid {shape}: give one or two sides of at least 3 with that product"
    return None
