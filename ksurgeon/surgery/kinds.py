"""How surgery treats each kind of site, one line each."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from ksurgeon.calibrate import SiteMoments
from ksurgeon.errors import SurgeryError
from ksurgeon.find import Site
from ksurgeon.frontend import KFilters, KFrontend
from ksurgeon.frontend.modules import replacement_of
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.permutation import permutation_
from ksurgeon.kmatrix.shuffle import KChannelShuffle
from ksurgeon.kmatrix.structured import StructuredMatrix
from ksurgeon.kmatrix.structures import Butterfly, Structure
from ksurgeon.kmatrix.transform import KTransform
from ksurgeon.surgery.build import (
    build_dense,
    build_layer,
    build_parameter,
    build_shuffle,
    in_parts,
    site_weight,
)
from ksurgeon.surgery.fitting import fit_site, shift_bias

__all__ = ["KINDS", "Kind", "kind_of"]


class Build(Protocol):
    """Makes a replacement; see ``Kind``."""

    def __call__(
        self,
        model: nn.Module,
        site: Site,
        structure: Structure,
        start: str,
        known: SiteMoments | None = None,
    ) -> tuple[nn.Module, float | None]: ...


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How surgery treats the sites of a kind.

    Attributes:
        modules: classes of the replacements.
        build: takes the model, the site (its ``parts`` as the plan wants them), the structure, the start
            ("empty": the values are loaded afterwards; "geometry": those of the site's ``permutation``) and
            what is known of the site's inputs; gives the replacement, and its relative weight error where
            there is one.
        dense: takes a replacement and the number of dimensions of what it maps; gives a plain module that
            computes the same, or raises SurgeryError.
        child: stem of the name of a replacement that a rewritten forward calls.
        is_original: for maps that had no parameters: whether a replacement is still exactly the map that it
            replaced. Such replacements have the attributes ``site`` (a path) and ``replaced`` (names and
            modules), which surgery sets.
    """

    modules: tuple[type[nn.Module], ...]
    build: Build
    dense: Callable[[nn.Module, int], nn.Module]
    child: str = "kmap"
    is_original: Callable[[nn.Module], bool] | None = None


def _layer(
    model: nn.Module, site: Site, structure: Structure, start: str, known: SiteMoments | None = None
) -> tuple[nn.Module, float | None]:
    old = model.get_submodule(site.owner)
    if site.parameter:
        parameter, transposed = model.get_parameter(site.path), bool(site.facts["transposed"])
        new: nn.Module = build_parameter(parameter, transposed, structure, start, old.training, site.parts)
    else:
        new = build_layer(old, structure, start, site.parts)
    if start == "fit":
        assert isinstance(new.matrix, StructuredMatrix)
        weight = site_weight(model, site).detach()
        error = fit_site(new.matrix, in_parts(weight, site.parts), known)
        if known is not None and site.has_bias and not site.parameter:
            wanted = known.output_mean
            if wanted is None:
                assert isinstance(old.bias, torch.Tensor)
                wanted = weight.double() @ known.mean + old.bias.detach()
            shift_bias(new, new.matrix, wanted, known.mean)
        return new, error
    return new, 0.0 if start == "exact" else None


def _shuffle(
    model: nn.Module, site: Site, structure: Structure, start: str, known: SiteMoments | None = None
) -> tuple[nn.Module, float | None]:
    assert site.dim is not None and site.permutation is not None
    training = model.get_submodule(site.owner).training
    new = build_shuffle(
        structure, site.in_features, site.groups, site.dim, site.permutation, start, model, training
    )
    return new, 0.0 if start == "exact" else None


def _insertion(
    model: nn.Module, site: Site, structure: Structure, start: str, known: SiteMoments | None = None
) -> tuple[nn.Module, float | None]:
    """The identity as a permutation, which any chain of square blocks can be, or that of the site."""
    assert site.dim is not None
    owner, size = model.get_submodule(site.owner), site.in_features
    like = owner if any(p.dtype.is_floating_point for p in owner.parameters()) else model
    began = {"exact": "identity", "geometry": "empty"}.get(start, start)
    new = build_shuffle(structure, size, 1, site.dim, tuple(range(size)), began, like, owner.training)
    if start == "geometry":
        assert site.permutation is not None
        permutation_(new.matrix, site.permutation)
    dtype = getattr(torch, site.dtype)
    if dtype.itemsize > 2 or any(p.dtype is dtype for p in model.parameters()):  # autocast is no reason
        new.to(dtype)
    return new, 0.0 if start == "exact" else None


@torch.no_grad()
def _is_original_shuffle(module: nn.Module) -> bool:
    assert isinstance(module, KChannelShuffle)
    weight = module.weight
    expected = torch.eye(len(module.permutation), dtype=weight.dtype, device=weight.device)
    return torch.equal(weight, expected[list(module.permutation)])


def _transform(
    model: nn.Module, site: Site, structure: Structure, start: str, known: SiteMoments | None = None
) -> tuple[nn.Module, float | None]:
    assert site.dim is not None and isinstance(structure, Butterfly)
    owner = model.get_submodule(site.owner)
    like = next((p for p in model.parameters() if p.dtype.is_floating_point), torch.empty(0))
    options = {"start": start, "device": like.device, "dtype": getattr(torch, site.facts["dtype"])}
    facts = {name: value for name, value in site.facts.items() if name != "dtype"}
    new = KTransform.of(facts, structure, site.dim, **options).train(owner.training)
    return new, 0.0 if start == "exact" else None


def _filterbank(
    model: nn.Module, site: Site, structure: Structure, start: str, known: SiteMoments | None = None
) -> tuple[nn.Module, float | None]:
    assert isinstance(structure, Butterfly)
    options: dict[str, Any] = {"start": start}
    if "n" in site.facts:
        options |= {"radices": structure.radices(site.facts["n"]), "symmetric": structure.symmetric}
    return replacement_of(model.get_submodule(site.path), **options), 0.0 if start == "exact" else None


def _is_original_transform(module: nn.Module) -> bool:
    assert isinstance(module, (KTransform, KFrontend, KFilters))
    return module.is_exact()


def _no_dense_transform(module: nn.Module, ndim: int) -> nn.Module:
    raise SurgeryError(
        f"what stands at {module.site} was trained, and no layer of torch.nn stands for it now; "
        "keep it, or set its factors back"
    )


_LAYER = Kind(modules=(KLinear, KPointwiseConv), build=_layer, dense=build_dense)
_SHUFFLE = Kind(
    modules=(KChannelShuffle,),
    build=_shuffle,
    dense=build_dense,
    child="kshuffle",
    is_original=_is_original_shuffle,
)

_TRANSFORM = Kind(
    modules=(KTransform,),
    build=_transform,
    dense=_no_dense_transform,
    child="ktransform",
    is_original=_is_original_transform,
)

KINDS: dict[str, Kind] = {
    "linear": _LAYER,
    "pointwise_conv": _LAYER,
    "channel_shuffle": _SHUFFLE,
    "permutation": replace(_SHUFFLE, child="kpermutation"),
    "insertion": replace(_SHUFFLE, build=_insertion),
    "transform": _TRANSFORM,
    "filterbank": replace(_TRANSFORM, modules=(KFrontend, KFilters), build=_filterbank),
}


def kind_of(module: nn.Module) -> Kind | None:
    """The kind whose replacement the module is; None for any other module."""
    return next((kind for kind in KINDS.values() if isinstance(module, kind.modules)), None)
