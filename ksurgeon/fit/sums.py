"""Fitting a chain and the low-rank path beside it."""

from collections.abc import Sequence

from torch import Tensor

from ksurgeon.fit.alternate import OnSweep, alternate, as_columns, outputs
from ksurgeon.fit.problem import Problem
from ksurgeon.fit.start import start
from ksurgeon.kmatrix.structures import Structure
from ksurgeon.kmatrix.subspace import wide
from ksurgeon.patterns.pattern import Pattern

__all__ = ["fit_sum"]

# After so many steps half a step more is taken.
_LATE = 3


def fit_sum(
    structure: Structure,
    patterns: Sequence[Pattern],
    beside: Sequence[Pattern],
    problem: Problem,
    sweeps: int,
    gain: float,
    on_sweep: OnSweep | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """A chain and a low rank in turns, each to what the other leaves of the weight, until they gain little.

    The low rank comes first, and is the best there is every time; the chain starts from the factorisation of
    what that leaves, and is brought nearer by one sweep of least squares at a time, and some way beyond.

    Returns:
        Factors of the chain, and of the low rank.
    """
    blocks = problem.blocks.to(wide(problem.blocks))
    inputs, target = problem.weighted(patterns)
    low_inputs, _ = problem.weighted(beside)
    basis, low_basis = as_columns(blocks, patterns[0]), as_columns(blocks, beside[0])

    def what_is_left(low: Sequence[Tensor]) -> Tensor:
        return target - outputs(low, low_inputs, target)

    low = problem.low_rank(blocks, beside)
    left = what_is_left(low)
    chain, _, _ = start(
        structure,
        patterns,
        problem,
        blocks - outputs(low, low_basis, blocks),
        lambda factors: problem.weighted_error(left - outputs(factors, inputs, left)),
    )
    best, least, last, age = (chain, low), float("inf"), float("inf"), 0
    reached = chain
    for sweep in range(1, sweeps + 1):
        before, (reached, _) = reached, alternate(chain, inputs, left, metric=problem.metric, sweeps=1)
        # Further in the direction of the step (Nesterov's weights), anew wherever that went too far.
        share = age / (age + _LATE)
        chain = [now + share * (now - then) for now, then in zip(reached, before, strict=True)]
        low = problem.low_rank(blocks - outputs(chain, basis, blocks), beside)
        left = what_is_left(low)
        error = problem.weighted_error(left - outputs(chain, inputs, target))
        if on_sweep is not None:
            on_sweep(sweep)
        if error < least:
            best, least = (chain, low), error
        if error < 1e-14 or (last >= error > (1 - gain) * last):
            break
        if error > last:
            if age == 0:
                break
            age, chain = 0, reached
            low = problem.low_rank(blocks - outputs(chain, basis, blocks), beside)
            left = what_is_left(low)
            last = problem.weighted_error(left - outputs(chain, inputs, target))
            continue
        age, last = age + 1, error
    return best
