"""Alternating least squares: one factor after the other, the others held, towards a matrix."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ksurgeon.kernels.reference import apply_factor
from ksurgeon.kmatrix.patterns import Pattern

__all__ = ["OnSweep", "alternate", "as_columns", "outputs"]

OnSweep = Callable[[int], None]

_ITERATIONS, _ENOUGH, _RIDGE = 4, 1e-2, 1e-12


@torch.no_grad()
def alternate(
    factors: Sequence[Tensor],
    inputs: Tensor,
    target: Tensor,
    *,
    gain: float = 1e-3,
    sweeps: int = 100,
    on_sweep: OnSweep | None = None,
) -> tuple[list[Tensor], float]:
    """Factors nearer to ``target`` in ``‖K · inputs − target‖``, which no sweep makes worse.

    The error is quadratic in each factor: conjugate gradients, with the diagonal blocks of the normal
    equations, Kronecker products of two small Gram matrices, as preconditioner. For the last factor, and for
    the first where the moment of the inputs is a multiple of the identity or there is but one block, these
    are the normal equations, and one iteration is the exact least-squares solution.

    Args:
        factors: of the chain, in double precision.
        inputs: columns that the chain is applied to, ``(groups · in_features, m)``: a root of the inputs'
            second moment, padded to the chain.
        target: ``(groups, out_features, m)``, where ``out_features`` may be less than what the chain gives.
        gain: stops once a sweep lowers the error by less than this share of it.
        sweeps: the most.
        on_sweep: called with the number of sweeps done.

    Returns:
        The factors, and their error relative to the target's norm.
    """
    now = [factor.clone() for factor in factors]
    norm = torch.linalg.vector_norm(target).item() or 1.0
    last = torch.linalg.vector_norm(outputs(now, inputs, target) - target).item() / norm
    for sweep in range(1, sweeps + 1):
        error = _sweep(now, inputs, target) / norm
        if on_sweep is not None:
            on_sweep(sweep)
        if error < 1e-14 or error > (1 - gain) * last:
            return now, error
        last = error
    return now, last


def as_columns(blocks: Tensor, first: Pattern, dtype: torch.dtype | None = None) -> Tensor:
    """Columns of which a chain that begins with the pattern ``first`` makes its own blocks."""
    groups, size = len(blocks), blocks.shape[2]
    basis = torch.eye(first.in_features // groups, size, dtype=dtype or blocks.dtype, device=blocks.device)
    return basis.repeat(groups, 1)


def outputs(factors: Sequence[Tensor], columns: Tensor, target: Tensor) -> Tensor:
    """What a chain makes of the columns, block by block, cropped to the shape of ``target``."""
    for factor in factors:
        columns = apply_factor(columns, factor)
    return columns.view(len(target), -1, columns.shape[1])[:, : target.shape[1]]


def _sweep(factors: list[Tensor], inputs: Tensor, target: Tensor) -> float:
    """Solve for each factor in turn, in place; gives the norm of what is left of the target."""
    after = _grams_after(factors, target)
    columns = inputs
    left = target - outputs(factors, inputs, target)
    for position, factor in enumerate(factors):
        rest = factors[position + 1 :]
        a, d, _, c = factor.shape
        before = columns.view(a, c, d, -1).transpose(1, 2)
        step, left = _solve(columns, before, rest, left, after[position], factor)
        factors[position] = factor + step
        columns = apply_factor(columns, factors[position])
    return torch.linalg.vector_norm(left).item()


def _solve(
    columns: Tensor, before: Tensor, rest: Sequence[Tensor], left: Tensor, gram: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """The step of one factor, and what it leaves of the target."""
    a, d, b, _ = factor.shape
    backwards = [item.mH for item in reversed(rest)]
    inner = before @ before.mH
    lower, upper = _root(gram), _root(inner)

    def gradient(left: Tensor) -> Tensor:
        back = _outputs_padded(left, rest, a * b * d)
        for item in backwards:
            back = apply_factor(back, item)
        return back.view(a, b, d, -1).transpose(1, 2) @ before.mH

    def solved(right: Tensor) -> Tensor:
        half = torch.cholesky_solve(right, lower)
        return torch.cholesky_solve(half.mH, upper).mH

    step = torch.zeros_like(factor)
    residual = gradient(left)
    direction = steepest = solved(residual)
    slope = first = _inner(residual, steepest)
    for _ in range(_ITERATIONS):
        if not slope > 0:
            break
        moved = outputs(rest, apply_factor(columns, direction), left)
        curvature = torch.linalg.vector_norm(moved).square()
        if not curvature > 0:
            break
        length = slope / curvature
        step += length * direction
        left = left - length * moved
        residual = gradient(left)
        steepest = solved(residual)
        before_slope, slope = slope, _inner(residual, steepest)
        if slope <= _ENOUGH * first:
            break
        direction = steepest + (slope / before_slope) * direction
    return step, left


def _inner(x: Tensor, y: Tensor) -> Tensor:
    return torch.vdot(x.reshape(-1), y.reshape(-1)).real


def _outputs_padded(left: Tensor, rest: Sequence[Tensor], inner: int) -> Tensor:
    """What is left of the target as columns of the chain's whole output."""
    outputs = Pattern.of(rest[-1].shape).out_features if rest else inner
    missing = outputs // len(left) - left.shape[1]
    return torch.nn.functional.pad(left, (0, 0, 0, missing)).flatten(0, 1)


def _grams_after(factors: Sequence[Tensor], target: Tensor) -> list[Tensor]:
    """For every factor the Gram matrices of what follows it, ``(a, d, b, b)``."""
    groups, kept = target.shape[:2]
    outputs = Pattern.of(factors[-1].shape).out_features // groups
    columns = torch.eye(outputs, kept, dtype=target.dtype, device=target.device).repeat(groups, 1)
    grams = []
    for factor in reversed(factors):
        a, d, b, _ = factor.shape
        blocks = columns.view(a, b, d, -1).transpose(1, 2)
        grams.append(blocks @ blocks.mH)
        columns = apply_factor(columns, factor.mH)
    return grams[::-1]


def _root(gram: Tensor) -> Tensor:
    """Cholesky factors of positive semidefinite matrices, made definite."""
    trace = gram.diagonal(dim1=-2, dim2=-1).real.mean(-1)[..., None, None]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    ridge = _RIDGE
    while True:
        root, info = torch.linalg.cholesky_ex(gram + (ridge * trace + 1e-300) * eye)
        if not bool(info.any()):
            return root
        ridge *= 100
