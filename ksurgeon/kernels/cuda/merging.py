"""Merging on the device: a chain is multiplied out by applying it to a basis, with the kernels themselves.

A merged factor has a dense block for each of its ``a·d`` places, and every place is independent of the
others: ``c`` vectors, each with a one in all places at once, are enough.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from ksurgeon.kernels.cuda.layout import Vectors, vectors_along
from ksurgeon.kernels.cuda.sweep import backward_steps, forward_steps
from ksurgeon.patterns.pattern import Pattern, hull

__all__ = ["merge", "pull_back"]


def _pattern_of(group: Sequence[Tensor]) -> Pattern:
    return reduce(hull, [Pattern.of(factor.shape) for factor in group])


def _basis(pattern: Pattern, like: Tensor) -> Vectors:
    a, _, c, d = pattern
    ones = torch.eye(c, dtype=_wide(like), device=like.device)[:, None, :, None].expand(c, a, c, d)
    return _rows(ones)


def _wide(factor: Tensor) -> torch.dtype:
    return torch.promote_types(factor.dtype, torch.float32)


def _rows(x: Tensor) -> Vectors:
    made = vectors_along(x.reshape(len(x), -1), 1)
    assert made is not None
    return made


def _groups(factors: Sequence[Tensor], counts: Sequence[int]) -> list[list[Tensor]]:
    found, position = [], 0
    for count in counts:
        found.append(list(factors[position : position + count]))
        position += count
    return found


def merge(factors: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """``merge_counts`` of contiguous factors, without a graph; products are made in float32 at least."""
    merged = []
    for group in _groups(factors, counts):
        if len(group) == 1:
            merged.append(group[0])
            continue
        pattern = _pattern_of(group)
        a, b, c, d = pattern
        result = torch.empty(c, pattern.out_features, dtype=_wide(group[0]), device=group[0].device)
        forward_steps(_basis(pattern, group[0]), group, _rows(result), c)
        place = result.view(c, a, b, d).permute(1, 3, 2, 0)
        merged.append(torch.empty(place.shape, dtype=group[0].dtype, device=place.device).copy_(place))
    return merged


def pull_back(factors: Sequence[Tensor], counts: Sequence[int], gradients: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of contiguous ``factors`` from those, not rounded, of ``merge(factors, counts)``."""
    results: list[Tensor] = []
    for group, gradient in zip(_groups(factors, counts), gradients, strict=True):
        if len(group) == 1:
            results.append(gradient)
            continue
        pattern = _pattern_of(group)
        g = _rows(gradient.permute(3, 0, 2, 1))
        results += backward_steps(g, _basis(pattern, gradient), group, None, pattern.c, True)
    return results
