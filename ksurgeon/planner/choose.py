"""The exact choice: one option for each site, within a budget, at the least harm (or cost)."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ksurgeon.errors import PlanError

__all__ = ["Choice", "choose", "least"]

_TRIES = 4


@dataclass(frozen=True)
class Choice:
    """One option for each group, by index.

    Attributes:
        value: sum of what was minimised.
        weight: sum of what was limited.
        gap: relative distance to what the solver proved to be impossible to beat; 0 if optimal.
    """

    picked: list[int]
    value: float
    weight: float
    gap: float


def least(weights: Sequence[Sequence[float]]) -> float:
    """The smallest sum of one weight from each group."""
    return float(sum(min(group) for group in weights))


def choose(
    values: Sequence[Sequence[float]],
    weights: Sequence[Sequence[float]],
    limit: float,
    seconds: float = 60.0,
) -> Choice:
    """Pick one option of every group: the least sum of values whose sum of weights is ``limit`` at most.

    A multiple-choice knapsack, solved by HiGHS (scipy's ``milp``) after options that another one of their
    group beats in both are dropped.

    Args:
        values, weights: of the options of each group, none negative.
        limit: of the sum of weights.
        seconds: of the solver; what it has then is returned, with its gap.

    Raises:
        PlanError: no choice meets the limit.
    """
    if least(weights) > limit * (1 + 1e-12):
        raise PlanError(f"no choice has a weight of {limit:g} or less; the least is {least(weights):g}")
    kept = [_undominated(v, w) for v, w in zip(values, weights, strict=True)]
    if not kept:
        return Choice([], 0.0, 0.0, 0.0)
    value = np.concatenate([[values[g][i] for i in group] for g, group in enumerate(kept)]).astype(float)
    weight = np.concatenate([[weights[g][i] for i in group] for g, group in enumerate(kept)]).astype(float)
    ends = np.cumsum([len(group) for group in kept])
    room = limit
    for _ in range(_TRIES):
        picked, gap = _solve(value, weight, ends, room, seconds)
        chosen = [group[int(i)] for group, i in zip(kept, picked, strict=True)]
        total = float(sum(weights[g][i] for g, i in enumerate(chosen)))
        if total <= limit * (1 + 1e-12):
            return Choice(chosen, float(sum(values[g][i] for g, i in enumerate(chosen))), total, gap)
        room -= 2 * (total - limit)  # the solver allows itself a tolerance
    lightest = [min(group, key=lambda i, g=g: weights[g][i]) for g, group in enumerate(kept)]  # type: ignore[misc]
    return Choice(
        lightest,
        float(sum(values[g][i] for g, i in enumerate(lightest))),
        float(sum(weights[g][i] for g, i in enumerate(lightest))),
        float("inf"),
    )


def _solve(
    value: "np.ndarray", weight: "np.ndarray", ends: "np.ndarray", limit: float, seconds: float
) -> tuple[list[int], float]:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    groups = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    columns = np.arange(len(value))
    one = csr_array((np.ones(len(value)), (groups, columns)), shape=(len(ends), len(value)))
    heaviest = max(float(weight.max()), 1e-300)
    # The solver's tolerances are absolute: what is minimised is brought to thousands.
    scale = 1e4 / max(float(value.max()), 1e-300)
    with _silence():
        found = milp(
            value * scale,
            constraints=[
                LinearConstraint(one, 1, 1),
                LinearConstraint(weight[None] / heaviest, -np.inf, limit / heaviest),
            ],
            integrality=np.ones(len(value)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0, "time_limit": seconds},
        )
    if found.x is None:
        starts = np.concatenate([[0], ends[:-1]])
        return [int(np.argmin(weight[a:b])) for a, b in zip(starts, ends, strict=True)], float("inf")
    starts = np.concatenate([[0], ends[:-1]])
    picked = [int(np.argmax(found.x[a:b])) for a, b in zip(starts, ends, strict=True)]
    return picked, max(float(found.mip_gap or 0.0), 0.0)


@contextmanager
def _silence() -> Iterator[None]:
    """Drop what the process writes to standard output: HiGHS in scipy 1.17 leaves lines for debugging."""
    try:
        sys.stdout.flush()
        kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    except (OSError, ValueError):  # closed
        yield
        return
    try:
        os.dup2(nothing, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def _undominated(values: Sequence[float], weights: Sequence[float]) -> list[int]:
    """Options than which none is at least as good in both, by falling value."""
    order = sorted(range(len(values)), key=lambda i: (weights[i], values[i]))
    kept: list[int] = []
    for i in order:
        if not kept or values[i] < values[kept[-1]]:
            kept.append(i)
    return kept
