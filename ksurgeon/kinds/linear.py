"""Dense layers, and parameters that a forward multiplies by itself."""

from typing import TYPE_CHECKING

from ksurgeon.kinds.dense import DenseKind

if TYPE_CHECKING:
    from torch import nn

    from ksurgeon.find import Finder, Layer, Site
    from ksurgeon.surgery.record import Operation

__all__ = ["Linear"]


class Linear(DenseKind):
    """Layers such as ``nn.Linear`` and GPT-2's, and parameters that stand for one."""

    name, title, splits = "linear", "linear layer", True

    modules = ("ksurgeon.kmatrix.linear:KLinear",)

    def layer(self, module: "nn.Module") -> "Layer | None":
        from ksurgeon.find.layer_kinds import linear_layer

        return linear_layer(module)

    def gather(self, finder: "Finder", sites: "list[Site]") -> "list[Site]":
        from ksurgeon.find.parameters import find_parameters

        if finder.recording is None:
            return sites
        owned = find_parameters(finder.model, finder.recording, [s for s in sites if s.weight_parameters])
        covered = {site.owner for site in owned}
        return [s for s in sites if not (s.weight_parameters and s.path in covered)] + owned

    def recorded_site(self, model: "nn.Module", operation: "Operation") -> "Site | None":
        """The site of a parameter."""
        from ksurgeon.find import Site

        if not operation.parameter or operation.parameter != operation.path.rpartition(".")[2]:
            return None
        try:
            shape = model.get_parameter(operation.path).shape
        except AttributeError:
            return None
        if len(shape) != 2 or operation.facts.keys() != {"transposed"}:
            return None
        out_features, in_features = shape[::-1] if operation.facts.get("transposed") else shape
        return Site(
            kind=self.name,
            path=operation.path,
            owner=operation.path.removesuffix(operation.parameter).removesuffix("."),
            in_features=in_features,
            out_features=out_features,
            parameter=operation.parameter,
            facts=operation.facts,
        )
