"""Fitting a matrix of any structure by descent on its parameters."""

import copy

import torch
from torch import Tensor, nn

from ksurgeon.fit.problem import Problem
from ksurgeon.kmatrix.structured import StructuredMatrix
from ksurgeon.kmatrix.subspace import wide

__all__ = ["descend_"]

_STEPS, _HISTORY = 100, 20


def descend_(
    matrix: StructuredMatrix,
    weight: Tensor,
    moment: Tensor | None = None,
    slopes: Tensor | None = None,
    steps: int | None = None,
) -> None:
    """Bring a matrix near to ``weight`` by L-BFGS in double precision, from the values that it has.

    Nothing changes where no step is better than those. The arguments are those of ``fit_``; ``steps`` is the
    most iterations, 100 if left out.

    Raises:
        StructureError, WeightsError: as of ``fit_``.
    """
    moments, seen = ([item] if item is not None else None for item in (moment, slopes))
    problem = Problem.of([matrix], [weight], moments, seen)
    with torch.inference_mode(False), torch.enable_grad():
        found = _descended(matrix, problem, _STEPS if steps is None else steps)
    if found is not None:
        with torch.no_grad():
            for mine, value in zip(matrix.parameters(), found, strict=True):
                mine.copy_(value)


def _descended(matrix: StructuredMatrix, problem: Problem, steps: int) -> list[nn.Parameter] | None:
    """The parameters after the descent, in double precision; None if they are no better."""
    blocks = problem.blocks.to(wide(problem.blocks)).clone()
    root, seen_by = (
        None if x is None else x.to(blocks.dtype).clone() for x in (problem.root, problem.metric.slopes)
    )
    scale = problem.scale.clone()
    slow = copy.deepcopy(matrix).to(blocks.dtype).requires_grad_()
    parameters = list(slow.parameters())

    def loss_of() -> Tensor:
        dense = slow.to_dense().unflatten(1, (matrix.groups, -1)).unflatten(0, (matrix.groups, -1))
        left = dense.diagonal(dim1=0, dim2=2).movedim(-1, 0) / scale - blocks
        left = left if root is None else left @ root
        left = left if seen_by is None else seen_by @ left
        return left.abs().square().sum()

    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=steps,
        history_size=_HISTORY,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    before = loss_of().item()
    if steps:
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return parameters if loss_of().item() < before else None
