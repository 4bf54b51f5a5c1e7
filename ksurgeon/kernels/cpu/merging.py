"""Gradients of factors from the gradients of their merged products."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ksurgeon.patterns.merge import merge_pair, widen_pair
from ksurgeon.patterns.pattern import Pattern

__all__ = ["pull_back"]


def pull_back(factors: Sequence[Tensor], counts: Sequence[int], gradients: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of ``factors`` where ``gradients`` are those of ``merge_counts(factors, counts)``."""
    results: list[Tensor] = []
    position = 0
    for count, gradient in zip(counts, gradients, strict=True):
        group = factors[position : position + count]
        products = [group[0]]
        for factor in group[1:-1]:
            products.append(merge_pair(products[-1], factor))
        of_group: list[Tensor] = []
        for first, second in zip(reversed(products), reversed(group[1:]), strict=False):
            left, right = widen_pair(first, second)
            of_group.append(_narrow(gradient @ right.mH, second.shape))
            gradient = _narrow(left.mH @ gradient, first.shape)
        results += [gradient, *reversed(of_group)]
        position += count
    return results


def _narrow(wide: Tensor, shape: Sequence[int]) -> Tensor:
    """The entries of ``widen(factor, …)`` that a factor of this shape has: the adjoint of ``widen``."""
    small, pattern = Pattern.of(shape), Pattern.of(wide.shape)
    if small == pattern:
        return wide
    p, q = small.a // pattern.a, small.d // pattern.d
    blocks = wide.reshape(pattern.a, pattern.d, p, small.b, q, p, small.c, q)
    index_p, index_q = torch.arange(p, device=wide.device), torch.arange(q, device=wide.device)
    kept = blocks[:, :, index_p[:, None], :, index_q, index_p[:, None], :, index_q]
    return kept.permute(2, 0, 1, 3, 4, 5).reshape(tuple(shape))
