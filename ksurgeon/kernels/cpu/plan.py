"""Which neighbouring factors to multiply out beforehand, for the least time in the CPU's kernels."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from ksurgeon.kmatrix.patterns import Pattern, hull

__all__ = ["merge_for_columns", "merge_for_rows", "merge_for_training"]

# Measured on one core with AVX-512: what moving a vector costs, in fused multiply-adds of one.
_MOVE = 3.0
_LARGEST_RADIX = 64


def _vectors(pattern: Pattern, lanes: int) -> tuple[int, int]:
    """Vectors multiplied and vectors read or written by one step on one row; see layout.h."""
    a, b, c, d = pattern
    if d >= lanes:
        groups, outputs = a * -(-d // lanes), b
    else:
        groups, outputs = a, -(-b // (lanes // d))
        if c <= b:
            fold = next((p for p in range(lanes // (b * d), 1, -1) if a % p == 0), 1)
            groups //= fold
    return groups * outputs * c, groups * (outputs + c)


def _cost_of_rows(pattern: Pattern, lanes: int) -> float:
    multiplied, moved = _vectors(pattern, lanes)
    return multiplied + _MOVE * moved


def _cost_of_columns(pattern: Pattern, lanes: int) -> float:
    return pattern.numel + _MOVE * (pattern.in_features + pattern.out_features)


def _plan(patterns: Sequence[Pattern], lanes: int, by_rows: bool) -> tuple[int, ...]:
    cost_of = _cost_of_rows if by_rows else _cost_of_columns
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for end in range(1, len(patterns) + 1):
        options = []
        merged = patterns[end - 1]
        for start in range(end - 1, -1, -1):
            if start < end - 1:
                merged = hull(patterns[start], merged)
                if max(merged.b, merged.c) > _LARGEST_RADIX and merged.numel > sum(
                    pattern.numel for pattern in patterns[start:end]
                ):
                    break
            cost, counts = best[start]
            options.append((cost + cost_of(merged, lanes), (*counts, end - start)))
        best.append(min(options))
    return best[-1][1]


@lru_cache(maxsize=4096)
def merge_for_rows(patterns: tuple[Pattern, ...], lanes: int) -> tuple[int, ...]:
    """How many neighbouring factors to merge into each step, for vectors that lie in rows."""
    return _plan(patterns, lanes, True)


@lru_cache(maxsize=4096)
def merge_for_columns(patterns: tuple[Pattern, ...], lanes: int) -> tuple[int, ...]:
    """The same for vectors that lie in columns."""
    return _plan(patterns, lanes, False)


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
