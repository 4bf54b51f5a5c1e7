"""Sites that are parameters which a forward multiplies by itself, as attention layers often do."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from ksurgeon.find.layers import (
    OFFLOADED,
    is_graph_module,
    is_plain,
    names_of_parameters,
    parts_of,
    paths_of,
)
from ksurgeon.find.recording import Recording
from ksurgeon.find.site import Site
from ksurgeon.find.uses import Use
from ksurgeon.kmatrix.structured import StructuredMatrix

__all__ = ["find_parameters"]


def find_parameters(model: nn.Module, recording: Recording, layers: Iterable[Site]) -> list[Site]:
    """Parameters of the modules themselves that the example run multiplied something by, as sites.

    Those of a layer that is a site, or is listed with a reason of its own, are left out.
    """
    paths, names = paths_of(model), names_of_parameters(model)
    known = {
        id(parameter)
        for site in layers
        if site.reason is None or not _only_own_forward(site)
        for parameter in model.get_submodule(site.path).parameters(recurse=False)
    }
    known |= {
        id(p)
        for module in model.modules()
        if isinstance(module, StructuredMatrix)
        for p in module.parameters()
    }
    sites: list[Site] = []
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in known or parameter.dim() < 2:
                continue
            uses = recording.uses.get(id(parameter))
            if uses:
                known.add(id(parameter))
                owner, *aliases = paths[id(module)]
                sites.append(
                    _site(module, owner, aliases, name, parameter, uses, recording, names[id(parameter)])
                )
    return sites


def _only_own_forward(site: Site) -> bool:
    return site.reason is not None and site.reason.endswith("has a forward of its own")


def _site(
    module: nn.Module,
    owner: str,
    aliases: Sequence[str],
    name: str,
    parameter: nn.Parameter,
    uses: Sequence[Use],
    recording: Recording,
    names: Sequence[str],
) -> Site:
    use = next((use for use in uses if not use.computed), uses[0])
    transposed = _is_transposed(parameter, use)
    shape = (parameter.shape[-2:] if parameter.dim() > 2 else parameter.shape)[:: -1 if transposed else 1]
    out_features, in_features = shape
    vectors = recording.multiplied_by(parameter)
    return Site(
        kind="linear",
        path=f"{owner}.{name}" if owner else name,
        owner=owner,
        parameter=name,
        aliases=tuple(f"{alias}.{name}" for alias in aliases),
        in_features=in_features,
        out_features=out_features,
        class_name=type(module).__name__,
        reason=_reason(module, name, parameter, uses, recording, names),
        parameters=parameter.numel(),
        weight_parameters=parameter.numel(),
        vectors=vectors,
        multiplications=vectors * in_features * out_features,
        read=True,
        parts=parts_of(f"{owner}.{name}", in_features, out_features),
        facts={"transposed": transposed},
    )


def _is_transposed(parameter: Tensor, use: Use) -> bool:
    """Whether the parameter is ``(in, out)``: a right operand as it stands, or a left one turned round."""
    if use.function in ("linear", "multi_head_attention_forward"):
        return False
    as_it_stands = use.shape[-2:] == parameter.shape[-2:]
    return as_it_stands is not use.left


def _reason(
    module: nn.Module,
    name: str,
    parameter: nn.Parameter,
    uses: Sequence[Use],
    recording: Recording,
    names: Sequence[str],
) -> str | None:
    if not is_plain(parameter):
        return f"it is no plain parameter ({type(parameter).__name__})"
    if parameter.dim() > 2:
        return f"a stack of matrices, {tuple(parameter.shape)}"
    if not parameter.dtype.is_floating_point and not parameter.dtype.is_complex:
        return f"quantised ({parameter.dtype})"
    if len(names) > 1:
        return f"tied: it is {' and '.join(names)}"
    if id(parameter) in recording.lookups:
        return "an embedding looks it up, too"
    plain = [use for use in uses if not use.computed and not use.constant]
    if not plain:
        if any(use.constant for use in uses):
            return "it multiplies other parameters only"
        return f"what multiplies is computed from it ({', '.join(uses[0].computed)})"
    if (made := is_graph_module(module)) is not None:
        return made
    if parameter.is_meta and hasattr(module, "_hf_hook"):
        return OFFLOADED
    if name in getattr(type(module), "__dict__", {}):
        return f"its class has an attribute {name} of its own"
    return None
