"""Channel shuffles, inside a forward or as a module."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ksurgeon.kmatrix.structures import Dense, Kaleidoscope, Structure, Sum
from ksurgeon.site_kinds import Grid, SiteKind, quoted, site_kinds

if TYPE_CHECKING:
    from torch import nn

    from ksurgeon.find import Match, Site
    from ksurgeon.find.tracer import Trace

__all__ = ["ChannelShuffle"]


class ChannelShuffle(SiteKind):
    """Shuffles of the channels between groups (Zhang et al., ShuffleNet, 2018)."""

    name, title, child = "channel_shuffle", "channel shuffle", "kshuffle"
    has_weight = False
    starts = ("exact", "random", "orthogonal", "identity")

    modules = ("ksurgeon.kmatrix.shuffle:KChannelShuffle",)

    def matches(self, module: "nn.Module", trace: "Trace", movers: set[str]) -> "Iterator[Match]":
        from ksurgeon.find.shuffles import find_shuffles

        return find_shuffles(module, trace, movers)

    def problem(self, structure: Structure, start: str | None, size: int = 0, grid: Grid = ()) -> str | None:
        if isinstance(structure, Sum):
            trained = quoted(kind.name for kind in site_kinds() if kind.is_dense)
            return (
                f'structure = "{structure.structure}" is for trained weights (find = {trained}), not for '
                f'"{self.name}"'
            )
        if not structure.is_chain:
            return f'structure = "{structure.structure}" is no chain of factors, which "{self.name}" needs'
        if start == "exact" and not isinstance(structure, (Dense, Kaleidoscope)) and self.takes(structure):
            return f'start = "exact" is known for structure = "kaleidoscope", not for "{structure.structure}"'
        return super().problem(structure, start, size, grid)

    def build(self, model: "nn.Module", site: "Site", structure: Structure, start: str) -> "nn.Module":
        from ksurgeon.surgery.build import build_shuffle

        assert site.dim is not None and site.permutation is not None
        training = model.get_submodule(site.owner).training
        return build_shuffle(
            structure, site.in_features, site.groups, site.dim, site.permutation, start, model, training
        )

    def to_dense(self, module: "nn.Module", ndim: int) -> "nn.Module":
        from ksurgeon.surgery.build import build_dense

        return build_dense(module, ndim)

    def is_original(self, module: "nn.Module") -> bool:
        import torch

        permutation = list(module.permutation)  # type: ignore[arg-type]
        with torch.no_grad():
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            expected = torch.eye(len(permutation), dtype=weight.dtype, device=weight.device)
            return torch.equal(weight, expected[permutation])
