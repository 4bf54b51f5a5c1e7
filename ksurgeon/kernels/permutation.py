"""Chains that only reorder what they are given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ksurgeon.patterns.pattern import Pattern

__all__ = ["permutation_of"]


@torch.no_grad()
def permutation_of(factors: Sequence[Tensor]) -> Tensor | None:
    """The permutation p, int64, with ``y = x[p]`` if every factor is a permutation matrix, else None."""
    for factor in factors:
        if factor.shape[-1] != factor.shape[-2]:
            return None
        one = factor == 1
        if not bool((one | (factor == 0)).all() & (one.sum(-1) == 1).all() & (one.sum(-2) == 1).all()):
            return None
    index = torch.arange(Pattern.of(factors[0].shape).in_features, device=factors[0].device)
    for factor in factors:
        a, d, _, c = factor.shape
        taken = (factor == 1).int().argmax(-1).transpose(1, 2)  # (a, b, d): the input i that output o takes
        index = index.view(a, c, d).gather(1, taken).flatten()
    return index
