"""Fourier, cosine, Hadamard and circulant transforms, inside a forward or as a module."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from ksurgeon.errors import StructureError, SurgeryError
from ksurgeon.kmatrix.structures import Butterfly, Structure
from ksurgeon.site_kinds import SiteKind

if TYPE_CHECKING:
    from torch import nn

    from ksurgeon.find import Match, Site
    from ksurgeon.find.tracer import Trace

__all__ = ["Transform"]


class Transform(SiteKind):
    """Transforms of a size that the model fixes."""

    name, title, child = "transform", "transform", "ktransform"
    has_weight, is_default = False, True
    structures, starts = ("butterfly",), ("exact", "random")

    modules: ClassVar[tuple[str, ...]] = ("ksurgeon.kmatrix.transform:KTransform",)

    def matches(self, module: "nn.Module", trace: "Trace", movers: set[str]) -> "Iterator[Match]":
        from ksurgeon.find.transforms import find_transforms

        return find_transforms(module, trace, movers)

    def cost(self, site: "Site", structure: Structure, parts: int = 1) -> tuple[int, int]:
        from ksurgeon.kmatrix.transform import count_parameters

        if not isinstance(structure, Butterfly):
            raise StructureError(self.problem(structure, None))
        numel = count_parameters(site.facts, structure)
        return numel, numel

    def build(self, model: "nn.Module", site: "Site", structure: Structure, start: str) -> "nn.Module":
        import torch

        from ksurgeon.kmatrix.transform import KTransform

        assert site.dim is not None and isinstance(structure, Butterfly)
        owner = model.get_submodule(site.owner)
        like = next((p for p in model.parameters() if p.dtype.is_floating_point), torch.empty(0))
        options = {"start": start, "device": like.device, "dtype": getattr(torch, site.facts["dtype"])}
        facts = {name: value for name, value in site.facts.items() if name != "dtype"}
        return KTransform.of(facts, structure, site.dim, **options).train(owner.training)

    def is_original(self, module: "nn.Module") -> bool:
        return bool(module.is_exact())  # type: ignore[operator]

    def to_dense(self, module: "nn.Module", ndim: int) -> "nn.Module":
        raise SurgeryError(
            f"what stands at {module.site} was trained, and no layer of torch.nn stands for it now; "
            "keep it, or set its factors back"
        )
