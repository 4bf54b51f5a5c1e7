"""Layers that are linear maps as whole modules: what their sizes are, and why one cannot be replaced."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Layer", "linear_layer", "pointwise_layer"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_QUANTISED = ("torch.ao.nn", "torch.nn.quantized", "torchao", "bitsandbytes", "optimum", "auto_gptq")
# Forwards of subclasses that do what the class of torch.nn does where the kernel has size 1.
_SAME_AT_ONE = {"timm.layers.conv2d_same.Conv2dSame", "timm.layers.linear.Linear"}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A module that is a linear map of its own.

    Attributes:
        in_features, out_features: entries of the vectors mapped, all groups together.
        groups: groups of a convolution.
        reason: why it cannot be replaced; None as far as its kind is concerned.
        size: entries of its weights; 0 for those of ``weight``.
        multiplications: for each vector; as many as ``size`` if left out.
        facts: plain data that its replacement needs.
    """

    in_features: int
    out_features: int
    groups: int = 1
    reason: str | None = None
    size: int = 0
    multiplications: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def _dense(module: nn.Module) -> Layer | None:
    if not isinstance(module, nn.Linear):
        return None
    return Layer(
        in_features=int(module.in_features),  # some models have a tensor there
        out_features=int(module.out_features),
        reason=_changed(module, nn.Linear),
    )


def _conv1d_of_transformers(module: nn.Module) -> Layer | None:
    """GPT-2's dense layer, whose weight is (in, out)."""
    base = _base_named(module, "transformers.pytorch_utils.Conv1D")
    if base is None:
        return None
    weight = module.weight
    assert isinstance(weight, Tensor)
    return Layer(
        in_features=weight.shape[0],
        out_features=weight.shape[1],
        reason=_changed(module, base),
    )


def _pointwise(module: nn.Module) -> Layer | None:
    base = next((c for c in (*_CONVOLUTIONS, *_TRANSPOSED) if isinstance(module, c)), None)
    if base is None:
        return None
    assert isinstance(module, nn.modules.conv._ConvNd)
    if any(size != 1 for size in module.kernel_size):
        return None
    return Layer(
        in_features=module.in_channels,
        out_features=module.out_channels,
        groups=module.groups,
        reason=_changed(module, base) or _not_pointwise(module),
    )


def _not_pointwise(module: nn.modules.conv._ConvNd) -> str | None:
    if isinstance(module, _TRANSPOSED):
        if any(step != 1 for step in module.stride):
            return f"transposed with stride {module.stride}: it spreads its input out"
        if any(module.output_padding):
            return f"output padding {module.output_padding} around a kernel of size 1"
    if module.padding not in ("valid", "same") and any(module.padding):
        return f"padding {module.padding} around a kernel of size 1"
    if module.groups in (module.in_channels, module.out_channels) and module.groups > 1:
        return "one channel a group: there is nothing to structure"
    return None


def _quantised(module: nn.Module) -> str | None:
    if type(module).__module__.startswith(_QUANTISED):
        return f"quantised ({type(module).__module__}.{type(module).__name__})"
    return None


def _quantised_dense(module: nn.Module) -> Layer | None:
    reason = _quantised(module)
    if reason is None or not hasattr(module, "in_features"):
        return None
    sizes = int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    return Layer(in_features=sizes[0], out_features=sizes[1], reason=reason)


def _quantised_pointwise(module: nn.Module) -> Layer | None:
    reason, kernel = _quantised(module), getattr(module, "kernel_size", ())
    if reason is None or not hasattr(module, "in_channels") or not kernel or any(s != 1 for s in kernel):
        return None
    sizes = int(module.in_channels), int(module.out_channels)  # type: ignore[arg-type]
    return Layer(in_features=sizes[0], out_features=sizes[1], reason=reason)


def _scripted(module: nn.Module, original: str) -> Layer | None:
    """What ``torch.jit`` compiled from a layer of the class."""
    if not isinstance(module, torch.jit.ScriptModule) or not re.fullmatch(original, module.original_name):
        return None
    weight = getattr(module, "weight", None)
    if weight is None or any(size != 1 for size in weight.shape[2:]):
        return None
    groups = int(getattr(module, "groups", 1))
    return Layer(
        in_features=weight.shape[1] * groups,
        out_features=weight.shape[0],
        groups=groups,
        reason="compiled by torch.jit.script or torch.jit.trace",
        size=weight.numel(),
    )


def _bilinear(module: nn.Module) -> Layer | None:
    if not isinstance(module, nn.Bilinear):
        return None
    return Layer(
        in_features=module.in1_features * module.in2_features,
        out_features=int(module.out_features),
        reason="bilinear: a map of the products of two inputs, not of one",
    )


def _recurrent(module: nn.Module) -> Layer | None:
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return None
    matrices = [p for p in module.parameters() if p.dim() == 2]
    return Layer(
        in_features=module.input_size,
        out_features=matrices[0].shape[0],
        reason="the weights of a recurrent layer, which its kernel reads at every step",
        size=sum(p.numel() for p in matrices),
    )


def linear_layer(module: nn.Module) -> Layer | None:
    """What a module is that computes a dense layer; None for any other."""
    return (
        _scripted(module, "Linear")
        or _quantised_dense(module)
        or _dense(module)
        or _conv1d_of_transformers(module)
        or _bilinear(module)
        or _recurrent(module)
    )


def pointwise_layer(module: nn.Module) -> Layer | None:
    """What a module is that computes a convolution with a kernel of size 1; None for any other."""
    return _scripted(module, "Conv[123]d") or _quantised_pointwise(module) or _pointwise(module)


def _changed(module: nn.Module, base: type[nn.Module]) -> str | None:
    """Whether the module does something else than its base class."""
    own = next(c for c in type(module).__mro__ if "forward" in vars(c))
    same = vars(own)["forward"] is base.forward or f"{own.__module__}.{own.__qualname__}" in _SAME_AT_ONE
    # accelerate's hooks put a forward around that of the class, and keep that.
    put = vars(module).get("_old_forward" if "_hf_hook" in vars(module) else "forward")
    if same and getattr(put, "__func__", put) in (None, vars(own)["forward"]):
        return None
    return f"{type(module).__name__} has a forward of its own"


def _base_named(module: nn.Module, name: str) -> type[nn.Module] | None:
    """The class of that name among the module's bases, without importing where it is."""
    return next((c for c in type(module).__mro__ if f"{c.__module__}.{c.__qualname__}" == name), None)
