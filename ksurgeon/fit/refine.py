"""Refinement of all the factors of a chain together, towards a dense matrix."""

from collections.abc import Callable, Iterator, Sequence
from math import cos, pi, sqrt

import torch
from torch import Tensor

from ksurgeon.kernels.reference import apply_factor
from ksurgeon.patterns.merge import merge_chain, widen
from ksurgeon.patterns.pattern import Pattern

__all__ = ["OnStep", "product", "refine", "relative_error", "relative_errors"]

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
    head, *steps = merge_chain(factors, _RADIX)
    return _apply(_dense(head, 1)[0], *steps)


@torch.no_grad()
def relative_errors(factors: Sequence[Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
    """``‖K − W‖`` and ``‖W‖`` for every matrix W of a stack and its block K of a chain, cropped to its size.

    Computed in the dtype of the factors, on slices of the target ``(groups, out_features, in_features)``.
    """
    factors, target = _upright(factors, target)
    head, *steps = _merged(factors, target)
    squares = torch.zeros(2, len(target), dtype=torch.float64, device=head.device)
    for part in _slices(target):
        wanted = target[..., part].to(head.dtype)
        difference = _crop(_apply(head[:, part], *steps), wanted) - wanted
        for total, x in zip(squares, (difference, wanted), strict=True):
            total += torch.linalg.vector_norm(x, dim=(1, 2)).double().square()
    return squares[0].sqrt(), squares[1].sqrt()


def relative_error(factors: Sequence[Tensor], target: Tensor) -> float:
    """``‖K − W‖ / ‖W‖`` over a whole stack, or for one matrix."""
    error, norm = (x.norm().item() for x in relative_errors(factors, _stack(target)))
    return error / norm if norm > 0 else error


@torch.inference_mode(False)
def refine(
    factors: Sequence[Tensor],
    target: Tensor,
    steps: int,
    error: float,
    on_step: OnStep | None = None,
) -> list[Tensor]:
    """Factors of a chain nearer to ``target``, a matrix or a stack, whose entries should be around 1.

    Adam (written out: the first use of PyTorch's own loads its compiler, 150 MB and two seconds) on the
    squared error, with a short warm-up and a cosine decay. ``error`` is the relative error
    of ``factors``; the nearer they are, the smaller the steps.
    """
    target = _stack(target)
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
        gradients = _gradients(now, target, norm)
        with torch.no_grad():
            for parameter, gradient, mean, square in zip(now, gradients, means, squares, strict=True):
                mean.lerp_(gradient, 1 - _BETAS[0])
                square.lerp_(gradient.abs().square(), 1 - _BETAS[1])
                parameter.sub_(rate * mean / (square.sqrt() + _TINY))
        if on_step is not None:
            on_step(step, steps)
    return [parameter.detach() for parameter in now]


def _gradients(factors: Sequence[Tensor], target: Tensor, norm: Tensor) -> list[Tensor]:
    """Gradients of the squared error over ``norm``, summed over slices of the target to save memory."""
    with torch.enable_grad():
        chain, target = _upright(factors, target)
        merged = _merged(chain, target)
    head, *steps = (step.detach().requires_grad_() for step in merged)
    sums = [torch.zeros_like(step) for step in merged]
    for part in _slices(target):
        leaves = [head.detach()[:, part].requires_grad_(), *steps]
        with torch.enable_grad():
            wanted = target[..., part]
            difference = _crop(_apply(*leaves), wanted) - wanted
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


def _merged(factors: Sequence[Tensor], target: Tensor) -> list[Tensor]:
    """The chain in few steps, the first of them the dense blocks of its groups, cropped, above each other."""
    start, *steps = merge_chain(factors, _RADIX)
    return [_dense(start, len(target))[:, :, : target.shape[2]].flatten(0, 1), *steps]


def _dense(factor: Tensor, groups: int) -> Tensor:
    pattern = Pattern.of(factor.shape)
    sizes = pattern.out_features // groups, pattern.in_features // groups
    return widen(factor, Pattern(groups, *sizes, 1))[:, 0]


def _apply(columns: Tensor, *steps: Tensor) -> Tensor:
    for step in steps:
        columns = apply_factor(columns, step)
    return columns


def _crop(columns: Tensor, target: Tensor) -> Tensor:
    return columns.unflatten(0, (len(target), -1))[:, : target.shape[1]]


def _slices(target: Tensor) -> Iterator[slice]:
    """Slices of the columns, at most about ``_SLICES`` of them and none of few entries."""
    width = max(1, max(_ENTRIES, target.numel() // _SLICES) // (target.shape[0] * target.shape[1]))
    return (slice(at, at + width) for at in range(0, target.shape[2], width))


def _stack(target: Tensor) -> Tensor:
    return target if target.dim() == 3 else target[None]
