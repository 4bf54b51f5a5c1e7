"""Recognise layers that are linear maps as whole modules, and tell why one cannot be replaced."""

from collections import defaultdict

from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.nn.utils import parametrize

from ksurgeon.find.recording import Recording
from ksurgeon.find.site import Site

__all__ = ["find_layers"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_QUANTISED = ("torch.ao.nn", "torch.nn.quantized", "torchao", "bitsandbytes", "optimum", "auto_gptq")


def find_layers(model: nn.Module, recording: Recording | None) -> list[Site]:
    """Sites that are layers of their own: "linear" and "pointwise_conv", in the order of the model."""
    paths: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        paths[id(module)].append(path)
    readers = _readers(model)
    sites = []
    for module in model.modules():
        kind = _kind(module)
        if kind is None:
            continue
        path, *aliases = paths[id(module)]
        in_features, out_features = _features(module)
        weight = getattr(module, "weight", None) if _plain_weight(module) else None
        groups = getattr(module, "groups", 1)
        size = weight.numel() if isinstance(weight, Tensor) else in_features * out_features // groups
        vectors = recording.vectors(module, out_features) if recording else 0
        sites.append(
            Site(
                kind=kind,
                path=path,
                owner=path,
                aliases=tuple(aliases),
                in_features=in_features,
                out_features=out_features,
                groups=groups,
                class_name=type(module).__name__,
                reason=_reason(module, path, kind, recording, readers),
                has_bias=getattr(module, "bias", None) is not None,
                parameters=sum(p.numel() for p in module.parameters() if not _is_lazy(p)) or size,
                weight_parameters=size,
                vectors=vectors,
                multiplications=vectors * in_features * out_features // groups,
            )
        )
    return sites


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.Linear) or (_is_quantised(module) and hasattr(module, "in_features")):
        return "linear"
    is_conv = isinstance(module, _CONVOLUTIONS) or (_is_quantised(module) and hasattr(module, "in_channels"))
    if is_conv and all(size == 1 for size in module.kernel_size):  # type: ignore[union-attr]
        return "pointwise_conv"
    return None


def _is_quantised(module: nn.Module) -> bool:
    return type(module).__module__.startswith(_QUANTISED)


def _features(module: nn.Module) -> tuple[int, int]:
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    return int(module.in_channels), int(module.out_channels)  # type: ignore[arg-type]


def _plain_weight(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return type(weight) is nn.Parameter and type(weight.data) is Tensor and not _is_lazy(weight)


def _is_lazy(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, UninitializedTensorMixin)


def _readers(model: nn.Module) -> dict[int, list[str]]:
    """Names under which each parameter stands in the model."""
    names: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names[id(parameter)].append(f"{path}.{name}" if path else name)
    return names


def _reason(
    module: nn.Module, path: str, kind: str, recording: Recording | None, readers: dict[int, list[str]]
) -> str | None:
    if not path:
        return "it is the whole model; put it inside another module to replace it"
    if _is_quantised(module):
        return f"quantised ({type(module).__module__}.{type(module).__name__})"
    if parametrize.is_parametrized(module):
        return "parametrised; remove the parametrisation first (torch.nn.utils.parametrize)"
    if any(_is_lazy(p) for p in module.parameters()):
        return "not initialised yet; run the model once first"
    if not _plain_weight(module):
        weight = getattr(module, "weight", None)
        what = type(weight).__name__ if isinstance(weight, Tensor) else "computed"
        return f"its weight is no plain parameter ({what})"
    if not module.weight.dtype.is_floating_point and not module.weight.dtype.is_complex:  # type: ignore[union-attr, operator]
        return f"quantised ({module.weight.dtype})"
    expected = (
        nn.Linear.forward
        if kind == "linear"
        else next(c.forward for c in _CONVOLUTIONS if isinstance(module, c))
    )
    if type(module).forward is not expected or "forward" in vars(module):
        return f"{type(module).__name__} has a forward of its own"
    if hasattr(module, "_hf_hook"):
        return "offloaded by accelerate's hooks"
    if kind == "pointwise_conv":
        if module.padding not in ("valid", "same") and any(module.padding):  # type: ignore[arg-type]
            return f"padding {module.padding} around a kernel of size 1"
        if module.groups in (module.in_channels, module.out_channels) and module.groups > 1:  # type: ignore[operator]
            return "one channel a group: there is nothing to structure"
    shared = [name for name in readers[id(module.weight)] if name != f"{path}.weight"]
    if shared:
        return f"its weight is tied to {', '.join(shared)}"
    if recording is not None and not recording.counts.get(id(module)):
        return (
            "its forward was not called in the example run: its parent reads its weight, or does not use it"
        )
    return None
