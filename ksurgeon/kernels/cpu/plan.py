"""Which neighbouring factors to multiply out beforehand, for the least time in the CPU's kernels."""

from collections.abc import Callable
from functools import lru_cache, partial
from itertools import pairwise
from typing import Literal

import torch

from ksurgeon.kernels.cpu.native import library
from ksurgeon.patterns.merge import merge_plan
from ksurgeon.patterns.pattern import Pattern

__all__ = ["FEW_ROWS", "Kind", "candidates", "merge_for_training"]

Kind = Literal["few", "rows", "columns"]
"""What is multiplied: less than ``FEW_ROWS`` vectors in rows, more of them, or vectors in columns."""

FEW_ROWS = 8

# Measured on one core with AVX-512: what moving a vector costs, in fused multiply-adds of one.
_MOVE = 3.0
_OTHER_MOVES = (1.0, 6.0, 12.0)
_LARGEST_RADIX = 64


def _groups_of_rows(pattern: Pattern, lanes: int) -> tuple[int, int]:
    """Groups of a step on one row, and the vectors of outputs of each; see layout.h."""
    a, b, c, d = pattern
    if d >= lanes:
        groups, outputs = a * -(-d // lanes), b
    else:
        groups, outputs = a, -(-b // (lanes // d))
        if c <= b:
            fold = next((p for p in range(lanes // (b * d), 1, -1) if a % p == 0), 1)
            groups //= fold
    return groups, outputs


def _cost_of_rows(pattern: Pattern, lanes: int, move: float) -> float:
    """Vectors multiplied, and vectors read or written by one step on one row."""
    groups, outputs = _groups_of_rows(pattern, lanes)
    return groups * (outputs * pattern.c + move * (outputs + pattern.c))


def _cost_of_pairs(pattern: Pattern, lanes: int, move: float) -> float:
    """The same where inputs are multiplied in pairs, which are made as they are read, but for neighbours."""
    groups, outputs = _groups_of_rows(pattern, lanes)
    pairs = -(-pattern.c // 2)
    return groups * (outputs * pairs + move * (outputs + (pairs if pattern.d > 1 else 0)))


def _cost_of_columns(pattern: Pattern, lanes: int, move: float) -> float:
    return pattern.numel + move * (pattern.in_features + pattern.out_features)


_COSTS: dict[Kind, Callable[..., float]] = {
    "few": _cost_of_rows,
    "rows": _cost_of_rows,
    "columns": _cost_of_columns,
}


@lru_cache(maxsize=4096)
def candidates(patterns: tuple[Pattern, ...], dtype: torch.dtype, kind: Kind) -> tuple[tuple[int, ...], ...]:
    """The few sensible ways to merge a chain for products of that kind, the one to take unmeasured first.

    Each says how many neighbouring factors make up each step, as ``merge_counts`` takes it.
    """
    lanes = int(library().ks_lanes(dtype in (torch.float64, torch.complex128)))
    cost = _cost_of_pairs if dtype is torch.bfloat16 else _COSTS[kind]
    plans = [
        merge_plan(patterns, _LARGEST_RADIX, partial(cost, lanes=lanes, move=move))
        for move in (_MOVE, *_OTHER_MOVES)
    ]
    return tuple(dict.fromkeys(plans))


@lru_cache(maxsize=4096)
def merge_for_training(patterns: tuple[Pattern, ...]) -> tuple[int, ...]:
    """The same where weights change with every step: only factors of equal support, whose product is a small
    matrix product, are merged."""
    counts = [1]
    for first, second in pairwise(patterns):
        if (first.a, first.d) == (second.a, second.d) and max(
            first.b, first.c, second.b
        ) == first.c == second.b:
            counts[-1] += 1
        else:
            counts.append(1)
    return tuple(counts)
