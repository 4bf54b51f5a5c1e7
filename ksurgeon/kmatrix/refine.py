"""Refinement of all the factors of a chain together, towards a dense matrix."""

from collections.abc import Callable, Sequence
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


def product(factors: Sequence[Tensor]) -> Tensor:
    """The matrix of a chain, ``(out_features, in_features)``, differentiable, in few and wide steps."""
    first, last = Pattern.of(factors[0].shape), Pattern.of(factors[-1].shape)
    if first.in_features > last.out_features:
        return product([factor.mT for factor in reversed(factors)]).mT
    start, *steps = merge_chain(factors, _RADIX)
    head = Pattern.of(start.shape)
    columns = widen(start, Pattern(1, head.out_features, head.in_features, 1))[0, 0]
    for step in steps:
        columns = apply_factor(columns, step)
    return columns


def relative_error(factors: Sequence[Tensor], target: Tensor, groups: int = 1) -> float:
    """``‖K − W‖ / ‖W‖`` for a chain K, cropped in each of its groups to the size of ``target``."""
    return _squared_error(factors, target, groups).sqrt().item()


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
    warm = max(1, round(_WARM_UP * steps))
    for step in range(1, steps + 1):
        share = step / warm if step <= warm else 0.5 + 0.5 * cos(pi * (step - warm) / (steps + 1 - warm))
        rate = _RATE * min(error, 1.0) * share * sqrt(1 - _BETAS[1] ** step) / (1 - _BETAS[0] ** step)
        with torch.enable_grad():
            gradients = torch.autograd.grad(_squared_error(now, target, groups), now)
        with torch.no_grad():
            for parameter, gradient, mean, square in zip(now, gradients, means, squares, strict=True):
                mean.lerp_(gradient, 1 - _BETAS[0])
                square.lerp_(gradient.abs().square(), 1 - _BETAS[1])
                parameter.sub_(rate * mean / (square.sqrt() + _TINY))
        if on_step is not None:
            on_step(step, steps)
    return [parameter.detach() for parameter in now]


def _squared_error(factors: Sequence[Tensor], target: Tensor, groups: int) -> Tensor:
    out_features, in_features = (size // groups for size in target.shape)
    dense = product(factors).unflatten(1, (groups, -1)).unflatten(0, (groups, -1))
    difference = dense[:, :out_features, :, :in_features].reshape(target.shape) - target
    norm = torch.linalg.vector_norm(target).square()
    return torch.linalg.vector_norm(difference).square() / torch.where(norm > 0, norm, 1.0)
