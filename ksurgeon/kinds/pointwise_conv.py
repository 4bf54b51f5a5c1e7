"""Convolutions with a kernel of size 1."""

from typing import TYPE_CHECKING

from ksurgeon.kinds.dense import DenseKind

if TYPE_CHECKING:
    from torch import nn

    from ksurgeon.find import Layer


__all__ = ["PointwiseConv"]


class PointwiseConv(DenseKind):
    """Convolutions, also transposed ones, that are a linear layer at every position."""

    name, title = "pointwise_conv", "pointwise convolution"

    modules = ("ksurgeon.kmatrix.conv:KPointwiseConv",)

    def layer(self, module: "nn.Module") -> "Layer | None":
        from ksurgeon.find.layer_kinds import pointwise_layer

        return pointwise_layer(module)
