"""Chains whose vectors are kept on the chip from the first factor to the last: how they are laid out there.

Triton's tiles have sizes that are powers of two. The place of an entry is written in digits, such that every
factor acts on neighbouring digits, and each digit is padded by itself: a vector of 768 = 16·16·3 entries is
kept as one of 16·16·4. The padding is never filled by anything but zeros.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import inf, prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ksurgeon.patterns.merge import merge_counts, merge_plan, widen
from ksurgeon.patterns.pattern import Pattern, hull

__all__ = ["Digit", "Whole", "packed", "whole_plan"]

_SMALLEST = 16  # radix that the tensor cores take
_LARGEST_RADIX = 64
# By bytes of an entry, such that 8 warps hold what they work on in registers: entries of the widest vector,
# and of the largest factor.
_WIDEST = {2: 1024, 4: 512}
_LARGEST = {2: 32768, 4: 8192}
# Moving one entry of 16 vectors between two factors, in entries of a factor read.
_MOVE = 16


class Digit(NamedTuple):
    """One digit of a place: its size in a tile, its own size, and its stride in the vector."""

    padded: int
    size: int
    stride: int


class Whole(NamedTuple):
    """How a chain is applied at once.

    Attributes:
        counts: how many neighbouring factors are merged into each step.
        patterns: of the steps, widened to what the tensor cores take.
        steps: the padded ``(a, b, c, d)`` of each, and where its entries begin.
        places: the digits of the input and of the output, the last one first.
        widest: entries of the longest padded vector.
        bounds: strides at which the vectors before, between and after the steps are cut into digits.
    """

    counts: tuple[int, ...]
    patterns: tuple[Pattern, ...]
    steps: tuple[tuple[int, int, int, int, int], ...]
    places: tuple[tuple[Digit, ...], tuple[Digit, ...]]
    widest: int
    bounds: tuple[tuple[int, ...], ...]


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()


@lru_cache(maxsize=4096)
def _broad(pattern: Pattern) -> Pattern:
    """The narrowest pattern around one whose radices the tensor cores take."""
    while min(_power(pattern.b), _power(pattern.c)) < _SMALLEST and pattern.a * pattern.d > 1:
        wider = [
            pattern._replace(b=pattern.b * p, c=pattern.c * p, **{place: size // p})
            for place, size in (("d", pattern.d), ("a", pattern.a))
            for p in range(2, size + 1)
            if size % p == 0
        ]
        enough = [w for w in wider if min(_power(w.b), _power(w.c)) >= _SMALLEST]
        pattern = min(enough, key=lambda w: w.numel) if enough else max(wider, key=lambda w: w.numel)
    return pattern


def _bounds(patterns: Sequence[Pattern]) -> list[list[int]] | None:
    """Strides at which the vectors before, between and after the factors are cut into digits.

    What a factor leaves in place has the same digits before and after it. None if the cuts do not nest.
    """
    found = [{1, patterns[0].in_features}, *({1, p.out_features} for p in patterns)]
    for position, (a, b, c, d) in enumerate(patterns):
        del a
        found[position] |= {d, c * d}
        found[position + 1] |= {d, b * d}
    changed = True
    while changed:
        changed = False
        for position, (_, b, c, d) in enumerate(patterns):
            before, after = found[position], found[position + 1]
            seen = {t for t in before if t <= d} | {t // c * b for t in before if t >= c * d}
            back = {t for t in after if t <= d} | {t // b * c for t in after if t >= b * d}
            if seen <= after and back <= before:
                continue
            after |= seen
            before |= back
            changed = True
    ordered = [sorted(bounds) for bounds in found]
    nested = all(high % low == 0 for bounds in ordered for low, high in pairwise(bounds))
    return ordered if nested else None


def _digits(bounds: Sequence[int]) -> tuple[Digit, ...]:
    """Digits between neighbouring cuts, the last one first; those without padding are one."""
    digits: list[Digit] = []
    for low, high in pairwise(bounds):
        digit = Digit(_power(high // low), high // low, low)
        last = digits[-1] if digits else None
        if last is not None and last.padded == last.size and digit.padded == digit.size:
            digits[-1] = Digit(last.padded * digit.padded, last.size * digit.size, last.stride)
        else:
            digits.append(digit)
    return tuple(digits) or (Digit(1, 1, 1),)


def _sizes(bounds: Sequence[int], low: int, high: int) -> list[int]:
    """Sizes of the digits between two cuts, the first one first."""
    within = [t for t in bounds if low <= t <= high]
    return [above // below for below, above in pairwise(within)][::-1]


@lru_cache(maxsize=4096)
def whole_plan(patterns: tuple[Pattern, ...], itemsize: int) -> Whole | None:
    """How to apply a chain at once, or None if its vectors or factors are too large to be kept."""
    widest, largest = _WIDEST.get(itemsize, 0), _LARGEST.get(itemsize, 0)
    if max(p.in_features for p in patterns) > widest or max(p.out_features for p in patterns) > widest:
        return None

    def cost(step: Pattern) -> float:
        broad = _broad(step)
        entries = broad.a * broad.d * _power(broad.b) * _power(broad.c)
        return inf if entries > largest else entries + _MOVE * (broad.in_features + broad.out_features)

    counts = merge_plan(patterns, _LARGEST_RADIX, cost)
    position, merged = 0, []
    for count in counts:
        step = patterns[position]
        for pattern in patterns[position + 1 : position + count]:
            step = hull(step, pattern)
        merged.append(_broad(step))
        position += count
    bounds = _bounds(merged)
    if bounds is None or any(min(_power(p.b), _power(p.c)) < _SMALLEST for p in merged):
        return None
    steps, offset = [], 0
    for (a, b, c, d), before, after in zip(merged, bounds, bounds[1:], strict=False):
        padded_a, padded_d = (
            prod(_power(s) for s in sizes)
            for sizes in (_sizes(before, c * d, a * c * d), _sizes(before, 1, d))
        )
        padded_b, padded_c = (
            prod(_power(s) for s in sizes) for sizes in (_sizes(after, d, b * d), _sizes(before, d, c * d))
        )
        entries = padded_a * padded_b * padded_c * padded_d
        if entries > largest or max(padded_b, padded_c) * padded_a * padded_d > widest:
            return None
        steps.append((padded_a, padded_b, padded_c, padded_d, offset))
        offset += entries
    return Whole(
        counts,
        tuple(merged),
        tuple(steps),
        (_digits(bounds[0]), _digits(bounds[-1])),
        max(a * max(b, c) * d for a, b, c, d, _ in steps),
        tuple(tuple(cuts) for cuts in bounds),
    )


def packed(factors: Sequence[Tensor], plan: Whole) -> Tensor:
    """The padded steps one behind the other, entries of each as ``[a, d, c, b]``."""
    parts = []
    for position, (factor, pattern) in enumerate(
        zip(merge_counts(factors, plan.counts), plan.patterns, strict=True)
    ):
        a, b, c, d = pattern
        before, after = plan.bounds[position], plan.bounds[position + 1]
        sizes = [
            *_sizes(before, c * d, a * c * d),
            *_sizes(before, 1, d),
            *_sizes(after, d, b * d),
            *_sizes(before, d, c * d),
        ]
        blocks = widen(factor, pattern).reshape(sizes)
        room = [pad for size in reversed(sizes) for pad in (0, _power(size) - size)]
        padded_a, padded_b, padded_c, padded_d, _ = plan.steps[position]
        padded = F.pad(blocks, room).reshape(padded_a * padded_d, padded_b, padded_c)
        parts.append(padded.mT.reshape(-1))
    return torch.cat(parts)
