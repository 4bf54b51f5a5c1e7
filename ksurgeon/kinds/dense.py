"""What linear layers and pointwise convolutions have in common: one dense weight."""

from typing import TYPE_CHECKING

from ksurgeon.kmatrix.structures import Dense, Structure
from ksurgeon.site_kinds import Grid, SiteKind, quoted, site_kinds

if TYPE_CHECKING:
    from torch import nn

    from ksurgeon.calibrate import SiteMoments
    from ksurgeon.find import Site
    from ksurgeon.surgery.record import Operation, Record

__all__ = ["DenseKind"]


class DenseKind(SiteKind):
    """Layers of a dense weight, which a layer with a K-matrix takes the place of."""

    is_dense = is_default = True

    def problem(self, structure: Structure, start: str | None, size: int = 0, grid: Grid = ()) -> str | None:
        if start == "exact" and isinstance(structure, Dense):
            return None
        if start == "exact":
            exact = quoted(kind.name for kind in site_kinds() if "exact" in kind.starts and not kind.inserts)
            return (
                f'start = "exact" needs a map that a K-matrix holds exactly (find = {exact}), not '
                f'"{self.name}", whose weight is dense; '
                f'allowed: {quoted(self.starts)}, or structure = "dense"'
            )
        return super().problem(structure, start, size, grid)

    def build(self, model: "nn.Module", site: "Site", structure: Structure, start: str) -> "nn.Module":
        from ksurgeon.surgery.build import build_layer, build_parameter

        old = model.get_submodule(site.owner)
        if site.parameter:
            parameter, transposed = model.get_parameter(site.path), bool(site.facts["transposed"])
            return build_parameter(parameter, transposed, structure, start, old.training, site.parts)
        return build_layer(old, structure, start, site.parts)

    def fit(
        self, new: "nn.Module", model: "nn.Module", site: "Site", known: "SiteMoments | None" = None
    ) -> float | None:
        from ksurgeon.surgery.fitting import fit_layer

        return fit_layer(new, model, site, known)

    def to_dense(self, module: "nn.Module", ndim: int) -> "nn.Module":
        from ksurgeon.surgery.build import build_dense

        return build_dense(module, ndim)

    def require_readable(self, model: "nn.Module", record: "Record", operation: "Operation") -> None:
        from ksurgeon.surgery.readable import require_same

        require_same(model, record, operation)
