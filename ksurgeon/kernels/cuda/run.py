"""Chains on real tensors. Everything the kernels rely on is checked here."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ksurgeon.kernels import reference
from ksurgeon.kernels.cuda import launch, pack
from ksurgeon.kernels.cuda.layout import Vectors, vectors_along
from ksurgeon.kernels.cuda.merging import pull_back
from ksurgeon.kernels.cuda.pack import Way
from ksurgeon.kernels.cuda.sweep import backward_steps, forward_steps
from ksurgeon.kernels.layout import check_memory, in_rows, new_result
from ksurgeon.patterns.merge import merge_counts
from ksurgeon.patterns.rotated import patterns_of

__all__ = ["backward", "best", "forward"]


def best(factors: Sequence[Tensor]) -> Way:
    """The way to compute that is thought to be the fastest of those by the kernels."""
    return "steps" if pack.plan_of(factors) is None else "whole"


def forward(
    x: Tensor,
    factors: Sequence[Tensor],
    bias: Tensor | None,
    dim: int,
    activation: str | None = None,
    *,
    way: Way,
    keep: bool = True,
) -> Tensor:
    """Apply a chain; no gradients, no modes.

    Args:
        way: how; "whole" only where ``pack.plan_of`` is not None.
        keep: the merged factors may be those of an earlier call.

    Raises:
        ValueError: the size along ``dim``, or that of the bias, is not the chain's.
    """
    axis = dim % x.dim()
    _check(x.shape[axis], factors, bias)
    out_features = patterns_of(factors)[-1].out_features
    y = new_result(x, axis, out_features, in_rows(x, axis))
    rows = x.numel() // x.shape[axis]
    if not rows:
        return y
    with _on_device(x):
        weights = (pack.merged_once if keep else pack.merged)(factors, way)
        if way == "reference":
            return y.copy_(reference.apply_chain(x, weights, axis, bias, activation))
        bias = None if bias is None else pack.contiguous([bias])[0]
        if way == "steps":
            forward_steps(_vectors(x, axis), weights, _vectors(y, axis), rows, bias, activation)
        else:
            plan = pack.plan_of(factors)
            assert plan is not None
            launch.whole(_vectors(x, axis), weights[0], plan, _vectors(y, axis), rows, bias, activation)
    return y


def backward(
    g: Tensor,
    x: Tensor,
    factors: Sequence[Tensor],
    dim: int,
    need_x: bool,
    need_factors: bool,
    *,
    way: Way = "steps",
) -> tuple[Tensor | None, list[Tensor] | None]:
    """Gradients of the input and of the factors; the intermediate vectors are computed once more."""
    axis = dim % x.dim()
    _check(x.shape[axis], factors, None)
    of_x = new_result(x, axis, x.shape[axis], in_rows(x, axis)) if need_x else None
    rows = x.numel() // x.shape[axis]
    if not rows:
        return of_x, [torch.zeros_like(factor) for factor in factors] if need_factors else None
    with _on_device(x):
        if way == "reference":
            return _by_reference(g, x, factors, axis, of_x, need_factors)
        plan = pack.plan_of(factors)
        if of_x is not None and not need_factors and plan is not None:
            packed = pack.merged_once(factors, "whole")[0]
            launch.whole(_vectors(g, axis), packed, plan, _vectors(of_x, axis), rows, transposed=True)
            return of_x, None
        plain, counts = pack.contiguous(factors), pack.counts_of(factors)
        gradients = backward_steps(
            _vectors(g, axis),
            _vectors(x, axis),
            pack.merged(factors, "steps"),
            None if of_x is None else _vectors(of_x, axis),
            rows,
            need_factors,
        )
        if not need_factors:
            return of_x, None
        pulled = pull_back(plain, counts, gradients)
    return of_x, [gradient.to(factor.dtype) for gradient, factor in zip(pulled, factors, strict=True)]


def _by_reference(
    g: Tensor, x: Tensor, factors: Sequence[Tensor], axis: int, of_x: Tensor | None, need_factors: bool
) -> tuple[Tensor | None, list[Tensor] | None]:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(of_x is not None)
        leaves = [factor.detach().requires_grad_(need_factors) for factor in factors]
        y = reference.apply_chain(leaf, merge_counts(leaves, pack.counts_of(factors)), axis)
    wanted = [t for t in (leaf, *leaves) if t.requires_grad]
    made = list(torch.autograd.grad(y, wanted, g))
    if of_x is not None:
        of_x.copy_(made.pop(0))
    return of_x, made if need_factors else None


def _on_device(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _vectors(x: Tensor, axis: int) -> Vectors:
    check_memory(x, "a tensor of vectors")
    x = x.resolve_conj().resolve_neg()
    found = vectors_along(x, axis)
    if found is None:
        found = vectors_along(x.contiguous(), axis)
        assert found is not None
    return found


def _check(size: int, factors: Sequence[Tensor], bias: Tensor | None) -> None:
    patterns = patterns_of(factors)
    takes, gives = patterns[0].in_features, patterns[-1].out_features
    if size != takes:
        raise ValueError(f"the chain takes vectors of {takes} entries, got {size}")
    if bias is not None and bias.shape != (gives,):
        raise ValueError(f"the bias must have shape ({gives},), got {tuple(bias.shape)}")
