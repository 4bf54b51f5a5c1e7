"""Sites that are whole modules, and why one cannot be replaced."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from torch import Tensor, fx, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.nn.utils import parametrize

from ksurgeon.find.layer_kinds import Layer
from ksurgeon.find.recording import Recording
from ksurgeon.find.site import Site
from ksurgeon.site_kinds import site_kinds

__all__ = [
    "OFFLOADED",
    "find_layers",
    "held_outside",
    "is_graph_module",
    "is_plain",
    "is_uninitialised",
    "kept_outside",
    "names_of_parameters",
    "parts_of",
    "paths_of",
]

OFFLOADED = "offloaded by accelerate; convert the model first and offload it then"

_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_FUSED = {
    2: re.compile(r"(^|[._])(to_|W|in_proj_|c_)?kv(_proj|_lin|_layer)?(\.weight)?$"),
    3: re.compile(
        r"(^|[._])((to_|W|in_proj_|c_)?qkv(_proj|_lin|_layer)?|c_attn|query_key_value|in_proj)([._]weight)?$"
    ),
}


def find_layers(model: nn.Module, recording: Recording | None) -> list[Site]:
    """Sites that are layers of their own, in the order of the model."""
    paths, names, outside = paths_of(model), names_of_parameters(model), held_outside(model)
    sites, kinds = [], site_kinds()[::-1]
    for module in model.modules():
        kind, layer = next(((k, known) for k in kinds if (known := k.layer(module))), (None, None))
        if kind is None or layer is None:
            continue
        path, *aliases = paths[id(module)]
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        size = layer.size or (weight.numel() if weight is not None and is_plain(weight) else 0)
        size = size or layer.in_features * layer.out_features // layer.groups
        vectors = recording.vectors(module, layer.out_features) if recording else 0
        read = recording is not None and not recording.counts.get(id(module)) and id(weight) in recording.uses
        if recording is not None and read:
            vectors = recording.multiplied_by(weight)
        tied = [name for name in names[id(weight)] if name != f"{path}.weight"]
        reason = _reason(module, path, layer, recording, outside)
        sites.append(
            Site(
                kind=kind.name,
                path=path,
                owner=path,
                aliases=tuple(aliases),
                in_features=layer.in_features,
                out_features=layer.out_features,
                groups=layer.groups,
                facts=dict(layer.facts),
                read=read,
                parts=parts_of(path, layer.in_features, layer.out_features) if kind.splits else 1,
                class_name=type(module).__name__,
                reason=reason or (f"its weight is tied to {', '.join(tied)}" if tied else None),
                tied=() if reason else tuple(tied),
                has_bias=getattr(module, "bias", None) is not None,
                parameters=sum(p.numel() for p in module.parameters() if not _is_lazy(p)) or size,
                weight_parameters=size,
                vectors=vectors,
                multiplications=vectors * (size if layer.multiplications is None else layer.multiplications),
            )
        )
    return sites


def parts_of(path: str, in_features: int, out_features: int) -> int:
    """Equal parts of a weight that projects to several things at once, as its name and sizes tell."""
    parts, rest = divmod(out_features, max(1, in_features))
    if rest == 0 and parts in _FUSED and _FUSED[parts].search(path):
        return parts
    return 1


def paths_of(model: nn.Module) -> dict[int, list[str]]:
    """All paths of each module, by ``id``."""
    paths: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        paths[id(module)].append(path)
    return paths


def names_of_parameters(model: nn.Module) -> dict[int, list[str]]:
    """Names under which each parameter stands in the model, by ``id``."""
    names: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names[id(parameter)].append(f"{path}.{name}" if path else name)
    return names


def held_outside(model: nn.Module) -> dict[int, str]:
    """Modules that stand in plain attributes or containers, where a replacement would not be seen."""
    held: dict[int, str] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_modules", "_parameters", "_buffers"):
                for inner in _modules_in(value):
                    held.setdefault(id(inner), f"{type(module).__name__}.{name}")
    return held


def kept_outside(module: nn.Module, outside: Mapping[int, str]) -> str | None:
    """Why the module cannot be swapped, if what ``held_outside`` gave has it."""
    if id(module) not in outside:
        return None
    return f"{outside[id(module)]} holds it too, as no child of a module, and would keep the old layer"


def _modules_in(value: object, depth: int = 3) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, (list, tuple, dict)) and depth:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _modules_in(item, depth - 1)


def is_plain(parameter: Tensor | None) -> bool:
    """Whether it is a parameter of torch.nn that holds a plain tensor."""
    return type(parameter) is nn.Parameter and type(parameter.data) is Tensor and not _is_lazy(parameter)


def is_graph_module(module: nn.Module) -> str | None:
    """Why a map inside the module's forward cannot be replaced, if that forward is the code of a graph."""
    if not isinstance(module, fx.GraphModule):
        return None
    return "torch.fx makes its forward from a graph (GraphModule); convert the model before it is traced"


def is_uninitialised(model: nn.Module) -> bool:
    """Whether the model has parameters whose shape its first run determines."""
    return any(_is_lazy(parameter) for parameter in model.parameters())


def _is_lazy(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, UninitializedTensorMixin)


def _reason(
    module: nn.Module,
    path: str,
    layer: Layer,
    recording: Recording | None,
    outside: dict[int, str],
) -> str | None:
    if not path:
        return "it is the whole model; put it inside another module to replace it"
    if parametrize.is_parametrized(module):
        return "parametrised; remove the parametrisation first (torch.nn.utils.parametrize)"
    if any(_is_lazy(p) for p in module.parameters()):
        return "not initialised yet; run the model once first"
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    if weight is not None and not (weight.dtype.is_floating_point or weight.dtype.is_complex):
        return f"quantised ({weight.dtype})"
    if layer.reason is not None:
        return layer.reason
    if not is_plain(weight):
        present = getattr(module, "weight", None)
        what = type(present).__name__ if isinstance(present, Tensor) else "computed"
        return f"its weight is no plain parameter ({what})"
    assert weight is not None
    if weight.is_meta and hasattr(module, "_hf_hook"):
        return OFFLOADED
    if any(vars(module)[hooks] for hooks in _STATE_HOOKS):
        return "hooks on its state dict or its loading may ask for its weight; remove them first"
    if weight._backward_hooks or weight._post_accumulate_grad_hooks:
        return "a hook waits for the gradient of its weight; remove it first"
    if (kept := kept_outside(module, outside)) is not None:
        return kept
    if recording is None or recording.counts.get(id(module)):
        return None
    if recording.uses.get(id(weight)):
        return None
    return "nothing used it in the example run"
