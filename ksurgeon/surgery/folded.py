"""A batch norm that the layer before it does: its arithmetic, the swap, and what stands in its place."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.int8 import Int8Matrix
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.patterns.pattern import Pattern

__all__ = ["MARK", "FoldSwap", "FoldedNorm", "dims_of", "why_not", "why_not_by_values"]

# Classes whose forward is known; a subclass may do anything with its weight.
_NORMS = {
    "torch.nn.modules.batchnorm.BatchNorm1d",
    "torch.nn.modules.batchnorm.BatchNorm2d",
    "torch.nn.modules.batchnorm.BatchNorm3d",
    "torchvision.ops.misc.FrozenBatchNorm2d",
    "timm.layers.norm_act.BatchNormAct2d",
}
_DENSE = {
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.conv.Conv1d",
    "torch.nn.modules.conv.Conv2d",
    "torch.nn.modules.conv.Conv3d",
    "timm.layers.conv2d_same.Conv2dSame",
}
_INSIDE = ("drop", "act")  # of timm's norms with an activation, in the order they are called
MARK = "folded"  # a buffer, without which a state_dict of the other kind would be loaded without a word
_LEAST = 1e-12  # a channel that is multiplied by less could not be taken out again


class FoldedNorm(nn.Module):
    """What a batch norm has become once the layer before it does its work: it gives what it takes.

    It keeps the norm's parameters and statistics under their names, and the norm's class as ``was``; a norm
    that applied an activation still does. ``dims`` is the number of dimensions of what it is given.
    """

    was: type[nn.Module]
    dims: int

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != self.dims:
            raise ValueError(
                f"this batch norm was folded for inputs of {self.dims} dimensions, got {x.dim()}; unfold the "
                "model for others"
            )
        for name in _INSIDE:
            if name in self._modules:
                x = self._modules[name](x)  # type: ignore[misc]
        return x

    def extra_repr(self) -> str:
        return f"{self.was.__name__}, done by the layer before it"


def dims_of(layer: nn.Module) -> int:
    """Dimensions of what a layer gives if a batch norm may stand behind it."""
    if isinstance(layer, (nn.Linear, KLinear)):
        return 2
    return len(layer.kernel_size) + 2  # type: ignore[arg-type]


def why_not(layer: nn.Module, norm: nn.Module, is_loaded: bool = False) -> str | None:
    """Why a layer cannot do, or no longer does alone, the batch norm behind it; None where it can.

    ``is_loaded`` says that values will be loaded, as they were, quantized ones among them.
    """
    own = norm.was if isinstance(norm, FoldedNorm) else type(norm)
    mean = getattr(norm, "running_mean", None)
    if f"{own.__module__}.{own.__qualname__}" not in _NORMS or not isinstance(mean, Tensor):
        return f"{own.__name__} is no batch norm with statistics"
    for module in (layer, norm):
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return "something was inserted or hooked there"
    if isinstance(layer, (KLinear, KPointwiseConv)):
        matrix: nn.Module | None = layer.matrix
        while matrix is not None and not is_loaded:
            if type(matrix) is not KMatrix:
                return f"its matrix is a {type(matrix).__name__}, which has no last factor to scale"
            if type(matrix.factors) is not nn.ParameterList or matrix.factors._forward_pre_hooks:
                return "its factors are computed from other parameters"
            matrix = matrix.side
    elif f"{type(layer).__module__}.{type(layer).__qualname__}" not in _DENSE:
        return f"{type(layer).__name__} is no layer that is known"
    elif not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return "its weight is computed from other parameters"
    outputs = layer.out_features if isinstance(layer, (nn.Linear, KLinear)) else layer.out_channels
    if mean.shape != (outputs,):
        return f"it gives {outputs} channels, and the norm is of {tuple(mean.shape)}"
    return None


@torch.no_grad()
def why_not_by_values(layer: nn.Module, norm: nn.Module) -> str | None:
    """The same, for what the tensors hold."""
    parts = [*_last(layer), *(t for t in (layer.bias,) if isinstance(t, Tensor))]
    if any(t.is_complex() or t.is_inference() or t.is_meta for t in parts):
        return "its parameters are complex, on the meta device, or were made in inference mode"
    scale, shift = _scale_and_shift(norm)
    if not bool((scale.abs() > _LEAST).all() and scale.isfinite().all() and shift.isfinite().all()):
        return "the norm multiplies a channel by zero, or is not finite"
    return None


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
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
    had_bias: bool | None = None
    _added: nn.Parameter | None = None
    _written: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = field(default_factory=list)
    _was_done: bool = False
    _is_idle: bool = False

    @torch.no_grad()
    def do(self) -> None:
        if self._is_idle:  # the norm was taken out by others before this swap was undone
            return
        scale, shift = _scale_and_shift(self.norm)
        bias, self._written = self.layer.bias, []
        self.had_bias = isinstance(bias, nn.Parameter)
        if self.has_values:
            self._scale(scale)
        if isinstance(bias, nn.Parameter):
            if self.has_values:
                self._write(bias, scale, shift)
        else:
            self._add_bias(shift)
        vars(self.norm).update(was=type(self.norm), dims=dims_of(self.layer))
        self.norm._buffers[MARK] = torch.ones((), dtype=torch.bool, device=shift.device)
        self.norm.__class__ = FoldedNorm
        self._was_done = True

    @torch.no_grad()
    def undo(self) -> None:
        """Back to what was there, bit for bit; where it was trained since, to what computes the same."""
        is_done = isinstance(self.norm, FoldedNorm)
        self._is_idle = self._was_done and not is_done
        if self._is_idle:
            return
        if is_done and not self._is_as_written():
            self.invert()
            return
        for tensor, before, _, _ in self._written:
            tensor.copy_(before)
        if not self.had_bias:
            self.layer._parameters["bias"] = None
        self._norm_again()

    def _is_as_written(self) -> bool:
        """Whether nothing was trained since."""
        written = [
            torch.equal(tensor, _scaled(before, scale, shift))
            for tensor, before, scale, shift in self._written
        ]
        if not self.had_bias and self._added is not None:
            _, shift = _scale_and_shift(self.norm)
            written.append(torch.equal(self._added, shift.to(self._added)))
        return all(written)

    @torch.no_grad()
    def invert(self) -> None:
        """The norm is at work again; the two together give what the layer alone gives now."""
        bias = self.layer.bias
        assert isinstance(bias, nn.Parameter)
        self._norm_again()
        scale, shift = _scale_and_shift(self.norm)
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

    def _norm_again(self) -> None:
        if isinstance(self.norm, FoldedNorm):
            del self.norm._buffers[MARK], vars(self.norm)["dims"]
            self.norm.__class__ = vars(self.norm).pop("was")

    def _add_bias(self, shift: Tensor) -> None:
        """The same parameter again after an undo: an optimizer may hold it."""
        own, like = self.norm.bias, next(_last(self.layer))
        trained = isinstance(own, nn.Parameter) and own.requires_grad
        if self._added is None:
            self._added = nn.Parameter(shift.to(like), requires_grad=trained)
        else:
            self._added.data = shift.to(like)
        vars(self.layer).pop("bias", None)  # None, which a K-layer without one has there
        self.layer._parameters["bias"] = self._added

    def _write(self, tensor: Tensor, scale: Tensor, shift: Tensor | None = None) -> None:
        before = tensor.clone()
        tensor.copy_(_scaled(before, scale, shift))
        self._written.append((tensor, before, scale, shift))

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
            self._write(last, beside)


def _scaled(tensor: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    product = tensor.double() * scale
    return (product if shift is None else product + shift).to(tensor.dtype)


def _last(layer: nn.Module) -> Iterator[Tensor]:
    """What a layer multiplies by last: its weight, or the last factor of a K-layer's chain, and of the one
    beside it."""
    if not isinstance(layer, (KLinear, KPointwiseConv)):
        assert isinstance(layer.weight, Tensor)
        yield layer.weight
        return
    matrix: nn.Module | None = layer.matrix
    while isinstance(matrix, KMatrix):
        yield matrix.factors[len(matrix.patterns) - 1]
        matrix = matrix.side
    if matrix is not None:  # in int8, whose values are loaded
        assert isinstance(matrix, Int8Matrix)
        yield matrix.like
