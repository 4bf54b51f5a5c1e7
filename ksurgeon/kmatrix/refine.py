"""Refinement of all the factors of a chain together, towards a dense matrix."""

from collections.abc import Callable, Iterator, Sequence
from math import cos, pi, sqrt

import torch
from torch import Tensor

from ksurgeon.kernels.reference import apply_factor
from ksurgeon.kmatrix.merge import merge_chain, widen
from ksurgeon.kmatrix.patterns import Pattern

__all__ = ["OnStep", "product", "refine", "relative_error"]

OnStep = Callable[[int, int], None]

# Found on Gaussian weights of ResNet-50's shapes and on EfficientNet-Lite0's trained ones: a third or
# three times the rate ends higher, L-BFGS with four times the steps likewise.
_RATE, _WARM_UP, _BETAS, _TINY = 0.1, 0.1, (0.9, 0.95), 1e-12
_RADIX = 16
_ENTRIES, _SLICES = 2**17, 8


def product(factors: Sequence[Tensor]) -> Tensor:
    """The matrix of a chain, ``(out_features, in_features)``, differentiable, in few and wide steps."""
    first, last = Pattern.of(factors[0].shape), Pattern.of(factors[-1].shape)
    if first.in_features > last.out_features:
        return product([factor.mT for factor in reversed(factors)]).mT
    return _apply(*_merged(factors))


@torch.no_grad()
def relative_error(factors: Sequence[Tensor], target: Tensor, groups: int = 1) -> float:
    """``‖K − W‖ / ‖W‖`` for a chain K, cropped in each of its groups to the size of ``target``.

    Computed in the dtype of the factors, on slices of the target.
    """
    factors, target = _upright(factors, target)
    head, *steps = _merged(factors, target.shape[1], groups)
    squares = torch.zeros(2, dtype=torch.float64, device=head.device)
    for part in _slices(target):
        wanted = target[:, part].to(head.dtype)
        difference = _crop(_apply(head[:, part], *steps), wanted, groups) - wanted
        squares += torch.stack([torch.linalg.vector_norm(x).double().square() for x in (difference, wanted)])
    error, norm = squares.tolist()
    return sqrt(error / norm if norm > 0 else error)


@torch.inference_mode(False)
def refine(
    factors: Sequence[Tensor],
    target: Tensor,
    steps: int,
    error: float,
    groups: int = 1,
    on_step: OnStep | None = None,
) -> list[Tensor]:
    """Factors of a chain nearer to ``target``, whose entries should be around 1.

    Adam (written out: the first use of PyTorch's own loads its compiler, 150 MB and two seconds) on the
    squared error, with a short warm-up and a cosine decay. ``error`` is the relative error
    of ``factors``; the nearer they are, the smaller the steps.
    """
    now = [factor.clone().requires_grad_() for factor in factors]
    means, squares = ([torch.zeros_like(f) for f in factors], [torch.zeros_like(f.abs()) for f in factors])
    if _upright(factors, target)[0] is not factors:
        target = target.mT.contiguous().mT  # its slices are read in every step
    norm = torch.linalg.vector_norm(target).square()
    norm = torch.where(norm > 0, norm, 1.0)
    warm = max(1, round(_WARM_UP * steps))
    for step in range(1, steps + 1):
        share = step / warm if step <= warm else 0.5 + 0.5 * cos(pi * (step - warm) / (steps + 1 - warm))
        rate = _RATE * min(error, 1.0) * share * sqrt(1 - _BETAS[1] ** step) / (1 - _BETAS[0] ** step)
        gradients = _gradients(now, target, norm, groups)
        with torch.no_grad():
            for parameter, gradient, mean, square in zip(now, gradients, means, squares, strict=True):
                mean.lerp_(gradient, 1 - _BETAS[0])
                square.lerp_(gradient.abs().square(), 1 - _BETAS[1])
                parameter.sub_(rate * mean / (square.sqrt() + _TINY))
        if on_step is not None:
            on_step(step, steps)
    return [parameter.detach() for parameter in now]


def _gradients(factors: Sequence[Tensor], target: Tensor, norm: Tensor, groups: int) -> list[Tensor]:
    """Gradients of the squared error over ``norm``, summed over slices of the target to save memory."""
    with torch.enable_grad():
        chain, target = _upright(factors, target)
        merged = _merged(chain, target.shape[1], groups)
    head, *steps = (step.detach().requires_grad_() for step in merged)
    sums = [torch.zeros_like(step) for step in merged]
    for part in _slices(target):
        leaves = [head.detach()[:, part].requires_grad_(), *steps]
        with torch.enable_grad():
            difference = _crop(_apply(*leaves), target[:, part], groups) - target[:, part]
            error = torch.linalg.vector_norm(difference).square() / norm
        del difference
        gradients = torch.autograd.grad(error, leaves)
        for total, gradient in zip([sums[0][:, part], *sums[1:]], gradients, strict=True):
            total += gradient
    # As a scalar: gradients of outputs given to autograd make it load SymPy, 35 MB.
    with torch.enable_grad():
        terms = [torch.vdot(x.flatten(), y.flatten()).real for x, y in zip(sums, merged, strict=True)]
        whole = torch.stack(terms).sum()
    return list(torch.autograd.grad(whole, factors))


def _upright(factors: Sequence[Tensor], target: Tensor) -> tuple[Sequence[Tensor], Tensor]:
    """The chain and its target, transposed where the chain is wider than high."""
    if Pattern.of(factors[0].shape).in_features > Pattern.of(factors[-1].shape).out_features:
        return [factor.mT for factor in reversed(factors)], target.mT
    return factors, target


def _merged(factors: Sequence[Tensor], in_features: int | None = None, groups: int = 1) -> list[Tensor]:
    """The chain in few steps, the first of them a dense matrix, its columns cropped in each group."""
    start, *steps = merge_chain(factors, _RADIX)
    pattern = Pattern.of(start.shape)
    head = widen(start, Pattern(1, pattern.out_features, pattern.in_features, 1))[0, 0]
    if in_features is not None:
        head = head.unflatten(1, (groups, -1))[:, :, : in_features // groups].flatten(1)
    return [head, *steps]


def _apply(columns: Tensor, *steps: Tensor) -> Tensor:
    for step in steps:
        columns = apply_factor(columns, step)
    return columns


def _crop(columns: Tensor, target: Tensor, groups: int) -> Tensor:
    return columns.unflatten(0, (groups, -1))[:, : target.shape[0] // groups].flatten(0, 1)


def _slices(target: Tensor) -> Iterator[slice]:
    """Slices of the columns, at most about ``_SLICES`` of them and none of few entries."""
    width = max(1, max(_ENTRIES, target.numel() // _SLICES) // target.shape[0])
    return (slice(at, at + width) for at in range(0, target.shape[1], width))
