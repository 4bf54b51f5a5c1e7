"""Multiplying out neighbouring factors of a chain: exact, and fewer, wider steps."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ksurgeon.patterns.pattern import Pattern, hull

__all__ = ["merge_chain", "merge_counts", "merge_pair", "merge_plan", "widen", "widen_pair"]


def widen(factor: Tensor, pattern: Pattern) -> Tensor:
    """The same matrix as ``factor``, stored as a factor of a ``pattern`` whose support holds it."""
    small = Pattern.of(factor.shape)
    if small == pattern:
        return factor
    p, q = small.a // pattern.a, small.d // pattern.d
    blocks = factor.reshape(pattern.a, p, q, pattern.d, small.b, small.c)
    wide = blocks.new_zeros(pattern.a, pattern.d, p, small.b, q, p, small.c, q)
    index_p, index_q = torch.arange(p, device=factor.device), torch.arange(q, device=factor.device)
    wide[:, :, index_p[:, None], :, index_q, index_p[:, None], :, index_q] = blocks.permute(1, 2, 0, 3, 4, 5)
    return wide.reshape(pattern.shape)


def widen_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two neighbouring factors, ``first`` applied first, widened: their product is ``left @ right``."""
    pattern = hull(Pattern.of(first.shape), Pattern.of(second.shape))
    inner = Pattern.of(second.shape).in_features // (pattern.a * pattern.d)
    left = widen(second, pattern._replace(c=inner))
    return left, widen(first, pattern._replace(b=inner))


def merge_pair(first: Tensor, second: Tensor) -> Tensor:
    """Product of two neighbouring factors, ``first`` applied first, as one factor on their hull."""
    left, right = widen_pair(first, second)
    return left @ right


def merge_plan(
    patterns: Sequence[Pattern], max_radix: int = 32, cost_of: Callable[[Pattern], float] | None = None
) -> tuple[int, ...]:
    """How many neighbouring factors to merge into each step, for the least work.

    The work of a step is what ``cost_of`` says, or its multiplications plus the entries it reads and
    writes, weighted as ``max_radix / 2`` multiplications each; no merged step has a radix above
    ``max_radix`` unless a single factor has it already.
    """
    move = max_radix / 2
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for end in range(1, len(patterns) + 1):
        options = []
        merged = patterns[end - 1]
        for start in range(end - 1, -1, -1):
            if start < end - 1:
                merged = hull(patterns[start], merged)
                if max(merged.b, merged.c) > max_radix and merged.numel > sum(
                    p.numel for p in patterns[start:end]
                ):
                    break
            if cost_of is None:
                work = merged.numel + move * (merged.in_features + merged.out_features)
            else:
                work = cost_of(merged)
            cost, groups = best[start]
            options.append((cost + work, (*groups, end - start)))
        best.append(min(options))
    return best[-1][1]


def merge_counts(factors: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """Multiply out the first ``counts[0]`` factors, the next ``counts[1]`` and so on; differentiable."""
    merged, position = [], 0
    for count in counts:
        step = factors[position]
        for factor in factors[position + 1 : position + count]:
            step = merge_pair(step, factor)
        merged.append(step)
        position += count
    return merged


def merge_chain(factors: Sequence[Tensor], max_radix: int = 32) -> list[Tensor]:
    """A chain with the same product and fewer factors; differentiable in ``factors``."""
    return merge_counts(factors, merge_plan([Pattern.of(f.shape) for f in factors], max_radix))
