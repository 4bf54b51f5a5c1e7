"""Alternating least squares: one factor after the other, the others held, towards a matrix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from ksurgeon.errors import WeightsError
from ksurgeon.kernels.reference import apply_factor
from ksurgeon.kmatrix.subspace import triangles
from ksurgeon.patterns.pattern import Pattern

__all__ = ["Metric", "OnSweep", "alternate", "as_columns", "outputs"]

OnSweep = Callable[[int], None]

# With two iterations a second brings the error down furthest: measured on real moments, two factors and ten.
_ITERATIONS, _ENOUGH = 2, 1e-2
# Added to Gram matrices before their roots are taken, in double and in single precision; entries of a target
# from which on single precision, which errs by 1e-7 of what is left, is worth its speed.
_RIDGE, _RIDGE_NARROW, _LARGE = 1e-12, 1e-6, 2**17


class Metric:
    """How errors of outputs are measured: ``‖R ·‖``, or as they are.

    Args:
        slopes: R, ``(groups, out_features, out_features)``, or None.
    """

    def __init__(self, slopes: Tensor | None) -> None:
        self.slopes = slopes

    def __call__(self, left: Tensor) -> Tensor:
        """``Rᴴ R`` times ``(groups, out_features, m)``."""
        if self.slopes is None:
            return left
        return (self._square @ left.to(self._square.dtype)).to(left.dtype)

    @cached_property
    def _square(self) -> Tensor:
        """In single precision, which errs by a share of what it is applied to: what is left of a target."""
        assert self.slopes is not None
        narrow = _narrowed(self.slopes)
        return narrow.mH @ narrow

    def norm(self, left: Tensor) -> float:
        if self.slopes is not None:
            left = _narrowed(self.slopes) @ _narrowed(left)
        return torch.linalg.vector_norm(left).item()


def _narrowed(x: Tensor) -> Tensor:
    return x.to(torch.complex64 if x.is_complex() else torch.float32)


@torch.no_grad()
def alternate(
    factors: Sequence[Tensor],
    inputs: Tensor,
    target: Tensor,
    *,
    metric: Metric | None = None,
    gain: float = 1e-3,
    sweeps: int = 100,
    on_sweep: OnSweep | None = None,
) -> tuple[list[Tensor], float]:
    """Factors nearer to ``target`` in ``‖R (K · inputs − target)‖``, which no sweep makes worse.

    The error is quadratic in each factor: conjugate gradients, with the diagonal blocks of the normal
    equations, Kronecker products of two small Gram matrices, as preconditioner. For the last factor, and for
    the first where the moment of the inputs is a multiple of the identity or there is but one block, these
    are the normal equations, and one iteration is the exact least-squares solution.

    Args:
        factors: of the chain.
        inputs: columns that the chain is applied to, ``(groups · in_features, m)``: a root of the inputs'
            second moment, padded to the chain.
        target: ``(groups, out_features, m)``, where ``out_features`` may be less than what the chain gives.
        metric: R; the identity if left out.
        gain: stops once a sweep lowers the error by less than this share of it.
        sweeps: the most, at least one.
        on_sweep: called with the number of sweeps done.

    Returns:
        The factors, and their error relative to the target's norm.
    """
    wide, now = factors[0].dtype, [factor.clone() for factor in factors]
    metric = metric or Metric(None)
    if target.numel() >= _LARGE:
        now, inputs, target = [_narrowed(f) for f in now], _narrowed(inputs), _narrowed(target)
    norm = metric.norm(target) or 1.0
    for sweep in range(1, sweeps + 1):
        kept = list(now)
        before, error = (value / norm for value in _sweep(now, inputs, target, metric))
        if on_sweep is not None:
            on_sweep(sweep)
        if not error <= before:
            now, error = kept, before
            break
        if error < 1e-14 or error > (1 - gain) * before:
            break
    return [factor.to(wide) for factor in now], error


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


def _sweep(factors: list[Tensor], inputs: Tensor, target: Tensor, metric: Metric) -> tuple[float, float]:
    """Solve for each factor in turn, in place; gives the error before and after."""
    grams = _grams_after(factors, target, metric)
    columns = inputs
    left = target - outputs(factors, inputs, target)
    seen = metric(left)
    before = _length(left, seen)
    for position, factor in enumerate(factors):
        a, d, _, c = factor.shape
        blocks = columns.view(a, c, d, -1).transpose(1, 2)
        problem = _Problem(columns, blocks, factors[position + 1 :], grams[position], metric)
        step, left, seen = problem.step(factor, left, seen)
        factors[position] = factor + step
        columns = apply_factor(columns, factors[position])
    return before, _length(left, seen)


@dataclass
class _Problem:
    """Least squares for one factor.

    Attributes:
        columns: what the factor is applied to.
        blocks: the same, block by block, ``(a, d, c, m)``.
        rest: factors after it.
        gram: Gram matrices of what follows its blocks, ``(a, d, b, b)``.
    """

    columns: Tensor
    blocks: Tensor
    rest: Sequence[Tensor]
    gram: Tensor
    metric: Metric

    def step(self, factor: Tensor, left: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The step of the factor, what it leaves of the target, and the metric of that."""
        lower, upper = _root(self.gram), _root(self.blocks @ self.blocks.mH)

        def solved(right: Tensor) -> Tensor:
            half = torch.cholesky_solve(right, lower)
            return torch.cholesky_solve(half.mH, upper).mH

        step = torch.zeros_like(factor)
        residual = self._gradient(seen, factor)
        direction = steepest = solved(residual)
        slope = first = _inner(residual, steepest)
        for iteration in range(_ITERATIONS):
            if not slope > 0:
                break
            moved = outputs(self.rest, apply_factor(self.columns, direction), left)
            weighed = self.metric(moved)
            curvature = _inner(moved, weighed)
            if not curvature > 0:
                break
            length = slope / curvature
            step += length * direction
            left = left - length * moved
            seen = left if weighed is moved else seen - length * weighed
            if iteration == _ITERATIONS - 1:
                break
            residual = self._gradient(seen, factor)
            steepest = solved(residual)
            before, slope = slope, _inner(residual, steepest)
            if slope <= _ENOUGH * first:
                break
            direction = steepest + (slope / before) * direction
        return step, left, seen

    def _gradient(self, seen: Tensor, factor: Tensor) -> Tensor:
        a, d, b, _ = factor.shape
        back = _outputs_padded(seen, self.rest, a * b * d)
        for item in reversed(self.rest):
            back = apply_factor(back, item.mH)
        return back.view(a, b, d, -1).transpose(1, 2) @ self.blocks.mH


def _length(left: Tensor, seen: Tensor) -> float:
    return _inner(left, seen).clamp(min=0).sqrt().item()


def _inner(x: Tensor, y: Tensor) -> Tensor:
    return torch.vdot(x.reshape(-1), y.reshape(-1)).real


def _outputs_padded(left: Tensor, rest: Sequence[Tensor], inner: int) -> Tensor:
    """What is left of the target as columns of the chain's whole output."""
    outputs = Pattern.of(rest[-1].shape).out_features if rest else inner
    missing = outputs // len(left) - left.shape[1]
    return F.pad(left, (0, 0, 0, missing)).flatten(0, 1)


def _grams_after(factors: Sequence[Tensor], target: Tensor, metric: Metric) -> list[Tensor]:
    """For every factor the Gram matrices of what follows it, ``(a, d, b, b)``."""
    groups, kept = target.shape[:2]
    outputs = Pattern.of(factors[-1].shape).out_features // groups
    if metric.slopes is None:
        columns = torch.eye(outputs, kept, dtype=target.dtype, device=target.device).repeat(groups, 1)
    else:
        columns = F.pad(metric.slopes.mH, (0, 0, 0, outputs - kept)).to(target.dtype).flatten(0, 1)
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
    trace = torch.where(trace > 0, trace, 1.0)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    ridge = _RIDGE if gram.dtype in (torch.float64, torch.complex128) else _RIDGE_NARROW
    while True:
        root = triangles(gram + ridge * trace * eye)
        if root is not None:
            return root
        ridge *= 100
        if ridge > 1e6:
            raise WeightsError(
                "the fit is numerically singular; the weight, input covariance or output gradients have "
                "entries of very different sizes"
            )
