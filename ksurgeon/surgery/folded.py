"""A batch norm that the layer before it does: its arithmetic, the swap, and what stands in its place."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.patterns import Pattern

__all__ = ["FoldSwap", "FoldedNorm", "scale_and_shift"]

_INSIDE = ("drop", "act")  # of timm's norms with an activation, in the order they are called


class FoldedNorm(nn.Module):
    """What a batch norm has become once the layer before it does its work: it gives what it takes.

    It keeps the norm's parameters and statistics under their names, and the norm's class as ``was``; a norm
    that applied an activation still does.
    """

    was: type[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        for name in _INSIDE:
            if name in self._modules:
                x = self._modules[name](x)  # type: ignore[misc]
        return x

    def extra_repr(self) -> str:
        return f"{self.was.__name__}, done by the layer before it"


@torch.no_grad()
def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies each channel by in eval mode, and adds to it; in double precision."""
    mean, variance, weight, bias = (
        tensor.double() if isinstance(tensor := getattr(norm, name), Tensor) else None
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    assert mean is not None and variance is not None
    scale = (variance + float(norm.eps)).rsqrt()  # type: ignore[arg-type]
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias


@dataclass
class FoldSwap:
    """A layer that does the batch norm behind it, too.

    ``has_values`` is False where the values are loaded afterwards; ``had_bias`` tells of the layer before.
    """

    layer: nn.Module
    norm: nn.Module
    has_values: bool = True
    had_bias: bool = True
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @torch.no_grad()
    def do(self) -> None:
        scale, shift = scale_and_shift(self.norm)
        bias, self.kept = self.layer.bias, []
        self.had_bias = isinstance(bias, nn.Parameter)
        if self.has_values:
            self._scale(scale)
        if isinstance(bias, nn.Parameter):
            if self.has_values:
                self._write(bias, bias.double() * scale + shift)
        else:
            own, like = self.norm.bias, next(_last(self.layer))
            trained = isinstance(own, nn.Parameter) and own.requires_grad
            vars(self.layer).pop("bias", None)  # None, which a K-layer without one has there
            self.layer._parameters["bias"] = nn.Parameter(shift.to(like), requires_grad=trained)
        vars(self.norm)["was"] = type(self.norm)
        self.norm.__class__ = FoldedNorm

    @torch.no_grad()
    def undo(self) -> None:
        for tensor, before in self.kept:
            tensor.copy_(before)
        if not self.had_bias:
            self.layer._parameters["bias"] = None
        if isinstance(self.norm, FoldedNorm):
            self.norm.__class__ = vars(self.norm).pop("was")

    @torch.no_grad()
    def invert(self) -> None:
        """The norm is at work again; the two together give what the layer alone gives now."""
        bias = self.layer.bias
        assert isinstance(bias, nn.Parameter) and isinstance(self.norm, FoldedNorm)
        self.norm.__class__ = vars(self.norm).pop("was")
        scale, shift = scale_and_shift(self.norm)
        self._scale(1 / scale)
        if self.had_bias:
            bias.copy_((bias.double() - shift) / scale)
            return
        self.layer._parameters["bias"] = None
        own, mean = self.norm.bias, self.norm.running_mean
        assert isinstance(mean, Tensor)
        if isinstance(own, Tensor):
            own.copy_(bias.double() + mean.double() * scale)
        else:
            mean.copy_(-bias.double() / scale)

    def _write(self, tensor: Tensor, value: Tensor) -> None:
        self.kept.append((tensor, tensor.clone()))
        tensor.copy_(value)

    def _scale(self, scale: Tensor) -> None:
        """Multiply each output of the layer, but for its bias."""
        for last in _last(self.layer):
            if isinstance(self.layer, (KLinear, KPointwiseConv)):
                pattern, groups = Pattern.of(last.shape), self.layer.matrix.groups
                blocks = scale.view(groups, -1)
                padded = F.pad(blocks, [0, pattern.out_features // groups - blocks.shape[1]])
                beside = padded.view(pattern.a, pattern.b, pattern.d).transpose(1, 2)[..., None]
            else:
                beside = scale.view(-1, *[1] * (last.dim() - 1))
            self._write(last, last.double() * beside)


def _last(layer: nn.Module) -> Iterator[Tensor]:
    """What a layer multiplies by last: its weight, or the last factor of a K-layer's chain, and of the one
    beside it."""
    if not isinstance(layer, (KLinear, KPointwiseConv)):
        assert isinstance(layer.weight, Tensor)
        yield layer.weight
        return
    matrix: KMatrix | None = layer.matrix
    while matrix is not None:
        yield matrix.factors[len(matrix.patterns) - 1]
        matrix = matrix.side
