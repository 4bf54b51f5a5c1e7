"""Build the module that takes a site's place, and hand over what the old one had."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.errors import SurgeryError
from ksurgeon.find import Site
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.lazy import plain
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.shuffle import KChannelShuffle
from ksurgeon.kmatrix.structured import StructuredMatrix
from ksurgeon.kmatrix.structures import Dense, Structure

__all__ = [
    "KModule",
    "build_dense",
    "build_layer",
    "build_parameter",
    "build_shuffle",
    "dense_blocks",
    "dense_weight",
    "hand_over",
    "in_parts",
    "note",
    "set_dense",
    "site_weight",
]

KModule = KLinear | KPointwiseConv | KChannelShuffle

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
_TENSORS = ("weight", "bias", "matrix")
# What the layers' own constructors set, of torch.nn and of ours.
_SIZES = frozenset(
    name
    for layer in (
        *(cls(2, 2, 1, device="meta") for cls in _CONVOLUTIONS.values()),
        nn.ConvTranspose1d(2, 2, 1, device="meta"),
        KPointwiseConv(2, 2, device="meta"),
        KLinear(2, 2, device="meta"),
        KChannelShuffle(2, 1, device="meta"),
    )
    for name in vars(layer)
) | {"nf", "nx"}  # transformers' Conv1D


def build_layer(
    module: nn.Module, structure: Structure, start: str = "empty", parts: int = 1
) -> KLinear | KPointwiseConv:
    """K-module of a linear layer's or pointwise convolution's sizes, dtype and device, sharing its bias.

    It remembers the layer without its tensors, so that a revert gives back the same class. "exact" takes over
    the weight, which a dense structure can hold.
    """
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    options: dict[str, Any] = {
        "structure": structure,
        "start": "empty" if start in ("exact", "fit") else start,
        "device": weight.device,
        "dtype": weight.dtype,
        "bias": bias is not None,
    }
    new: KLinear | KPointwiseConv
    if isinstance(module, nn.modules.conv._ConvNd):
        new = KPointwiseConv(
            module.in_channels,
            module.out_channels,
            module.stride,
            module.groups,
            dims=len(module.kernel_size),
            transposed=module.transposed,
            **options,
        )
    else:
        transposed = not isinstance(module, nn.Linear)  # transformers' Conv1D
        out_features, in_features = weight.shape[::-1] if transposed else weight.shape
        new = KLinear(in_features, out_features, parts=parts, transposed=transposed, **options)
    if start == "exact":
        set_dense(new.matrix, in_parts(dense_weight(module), parts))
    if bias is not None:
        new.bias = bias  # type: ignore[assignment]
    new.matrix.requires_grad_(weight.requires_grad)
    hand_over(module, new)
    vars(new)["shell"] = _emptied(module)
    return new


def _emptied(module: nn.Module) -> nn.Module:
    """A copy of the layer that holds no tensors, and no children, which are handed over."""
    shell = copy.copy(module)
    vars(shell)["_parameters"], vars(shell)["_modules"] = dict.fromkeys(module._parameters), {}
    for name in ("_hf_hook", "_old_forward", "forward"):  # accelerate's, which are bound to the layer
        vars(shell).pop(name, None)
    return shell


def _weights_of(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that make the weight of a layer."""
    matrix = module._modules.get("matrix")
    return [module._parameters["weight"]] if matrix is None else list(matrix.parameters())  # type: ignore[list-item]


@torch.no_grad()
def set_dense(matrix: StructuredMatrix, weight: Tensor) -> None:
    """Let a matrix of dense structure be ``weight``, ``(out_features, in_features)``.

    Raises:
        SurgeryError: the structure is another one.
    """
    if not (isinstance(matrix, KMatrix) and isinstance(matrix.structure, Dense)):
        raise SurgeryError(f"only a dense structure holds every weight exactly, not {matrix.structure}")
    matrix.factors[0].copy_(dense_blocks(weight, matrix.groups).unsqueeze(1))


def build_shuffle(
    structure: Structure,
    channels: int,
    groups: int,
    dim: int,
    permutation: tuple[int, ...],
    start: str,
    like: nn.Module,
    training: bool,
) -> KChannelShuffle:
    """K-matrix in place of a shuffle, of the dtype and device of the model ``like``."""
    reference = next((p for p in like.parameters() if p.dtype.is_floating_point), torch.empty(0))
    return KChannelShuffle(
        channels,
        groups,
        dim,
        permutation=permutation,
        start=start,
        structure=structure,
        device=reference.device,
        dtype=reference.dtype,
    ).train(training)


def hand_over(old: nn.Module, new: nn.Module) -> None:
    """Training flag and hooks of the old module, accelerate's too, become the new one's; both share them.

    So do attributes, buffers and children that somebody gave the layer, and what was noted on its weight
    (``lr_mult``, ``no_decay``), which every factor gets.
    """
    new.train(old.training)
    for name, value in vars(old).items():
        if not name.startswith("_") and name not in _SIZES and name not in ("forward", "shell"):
            vars(new)[name] = value
    for held in ("_parameters", "_buffers", "_modules"):
        added = {name: value for name, value in vars(old)[held].items() if name not in _TENSORS}
        vars(new)[held] = {**vars(new)[held], **added}
    new._non_persistent_buffers_set = set(old._non_persistent_buffers_set)
    for weight in _weights_of(old)[:1]:  # none of one in int8
        note(weight, _weights_of(new))
    for name in _HOOKS:
        if name in vars(old):
            object.__setattr__(new, name, vars(old)[name])
    if "_hf_hook" in vars(old):
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(new, vars(old)["_hf_hook"])


def note(old: nn.Parameter, parameters: Iterable[nn.Parameter]) -> None:
    """What somebody noted on a parameter is noted on those that come in its place."""
    notes = {name: value for name, value in vars(old).items() if not name.startswith("_ksurgeon")}
    for parameter in parameters:
        vars(parameter).update(notes)


def dense_weight(module: nn.Module) -> Tensor:
    """Weight of a linear layer or pointwise convolution as a matrix ``(out, in)``, zero between groups."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    groups = getattr(module, "groups", 1)
    blocks = weight.detach().flatten(1).unflatten(0, (groups, -1))
    if getattr(module, "transposed", not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))):
        blocks = blocks.mT
    return blocks[0] if groups == 1 else torch.block_diag(*blocks)


def site_weight(model: nn.Module, site: Site) -> Tensor:
    """Weight of a site that has parameters as a matrix ``(out, in)``, zero between groups."""
    if not site.parameter:
        return dense_weight(model.get_submodule(site.path))
    weight = model.get_parameter(site.path).detach()
    return weight.T if site.facts["transposed"] else weight


def dense_blocks(weight: Tensor, groups: int) -> Tensor:
    """The diagonal blocks of a matrix, ``(groups, out / groups, in / groups)``."""
    blocks = weight.unflatten(1, (groups, -1)).unflatten(0, (groups, -1))
    return blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)


def in_parts(weight: Tensor, parts: int) -> Tensor:
    """The matrix that maps ``parts`` copies of a vector to what ``weight`` maps the vector to."""
    return weight if parts == 1 else torch.block_diag(*weight.chunk(parts))


def build_parameter(
    parameter: nn.Parameter,
    transposed: bool,
    structure: Structure,
    start: str,
    training: bool,
    parts: int = 1,
) -> KLinear:
    """K-module that makes a parameter; ``transposed`` tells that it is ``(in, out)``."""
    out_features, in_features = parameter.shape[::-1] if transposed else parameter.shape
    new = KLinear(
        in_features,
        out_features,
        bias=False,
        structure=structure,
        parts=parts,
        transposed=transposed,
        start="empty" if start in ("exact", "fit") else start,  # type: ignore[arg-type]
        device=parameter.device,
        dtype=parameter.dtype,
    )
    if start == "exact":
        weight = parameter.detach().T if transposed else parameter.detach()
        set_dense(new.matrix, in_parts(weight, parts))
    new.matrix.requires_grad_(parameter.requires_grad)
    note(parameter, new.matrix.parameters())
    return new.train(training)


def build_dense(module: nn.Module, ndim: int = 0) -> nn.Module:
    """The dense layer of torch.nn that computes what a K-module does now.

    ``ndim`` is the number of dimensions of what a shuffle takes.

    Raises:
        SurgeryError: a shuffle along a dimension that no dense layer of torch.nn maps.
    """
    assert isinstance(module, (KLinear, KPointwiseConv, KChannelShuffle))
    weight = plain(module.weight.detach())
    trained = getattr(module.matrix, "was_trained", None)  # of one in int8, which has no parameters
    if trained is None:
        trained = next(module.matrix.parameters()).requires_grad
    new: nn.Module
    if "shell" in vars(module):
        new = _emptied(vars(module)["shell"])
    elif isinstance(module, KPointwiseConv):
        new = _CONVOLUTIONS[len(module.kernel_size)](
            module.in_channels,
            module.out_channels,
            1,
            module.stride,  # type: ignore[arg-type]
            groups=module.groups,
            bias=False,
            device="meta",
        )
    elif isinstance(module, KLinear) or module.dim in (-1, ndim - 1):
        new = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    elif module.dim in (1, 1 - ndim) and ndim - 2 in _CONVOLUTIONS:
        new = _CONVOLUTIONS[ndim - 2](module.in_features, module.out_features, 1, bias=False, device="meta")
        weight = weight.reshape(*weight.shape, *[1] * (ndim - 2))
    else:
        raise SurgeryError(
            f"no dense layer maps dimension {module.dim} of a tensor of {ndim} dimensions; "
            "set the K-matrix back to the map that stood there (the identity if it was inserted), or keep it"
        )
    new.weight = nn.Parameter(weight.contiguous(), requires_grad=trained)
    new.bias = getattr(module, "bias", None)  # type: ignore[assignment]
    hand_over(module, new)
    return new
