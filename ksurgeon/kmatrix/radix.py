"""Which inner size and which radices a K-matrix of given sizes gets."""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Literal, NamedTuple

from ksurgeon.errors import StructureError

__all__ = ["LARGEST_PRIME", "Layout", "Radix", "layout", "prime_factors", "transform_radices"]

Radix = Literal["auto"] | int | tuple[int, ...]

LARGEST_PRIME = 31
"""Sizes with a prime factor above this are padded: a dense block that wide saves next to nothing."""

_LARGEST_RADIX = 64
_LARGEST_PADDED = 2**17
_MOVE = 16  # what writing an entry costs, in multiplications
# A rectangular factor of input radix 1 would only repeat its input, scaled.
_SMALLEST_RECTANGULAR_RADIX = 4


class Layout(NamedTuple):
    """Sizes of a K-matrix: square on ``prod(radices)``, the outermost factor on the larger side rectangular.

    ``outer`` is the radix of that factor on the larger side; it equals ``radices[-1]`` for a square one.
    """

    radices: tuple[int, ...]
    outer: int

    @property
    def small(self) -> int:
        """Inner size, on which the product of butterflies lives."""
        return prod(self.radices)

    @property
    def large(self) -> int:
        """Size on the larger side."""
        return self.small // self.radices[-1] * self.outer

    @property
    def cost(self) -> int:
        """Parameters of one butterfly with its rectangular factor, and entries it moves."""
        return self.small * (sum(self.radices[:-1]) + self.outer + len(self.radices)) + self.large


def prime_factors(n: int) -> list[int]:
    """Prime factors of n ≥ 1 in ascending order; empty for 1."""
    factors, p = [], 2
    while p * p <= n:
        while n % p == 0:
            factors.append(p)
            n //= p
        p += 1
    return factors + ([n] if n > 1 else [])


def _radices(n: int, radix: Literal["auto"] | int) -> tuple[int, ...]:
    """Radices whose product is n.

    "auto" is the prime factors with twos taken in pairs: a factor of radix 4 has exactly as many
    parameters as two of radix 2, holds their product and more, and is one step instead of two. Odd primes
    come last, so that the small strides are powers of two, which fill the registers of a processor.
    """
    if n == 1:
        return (1,)
    step = 4 if radix == "auto" else radix
    chosen = []
    while n % step == 0:
        chosen.append(step)
        n //= step
    group = 1
    for p in prime_factors(n):
        if radix != "auto" and group * p <= step:
            group *= p
            continue
        if group > 1:
            chosen.append(group)
        group = p
    if group > 1:
        chosen.append(group)
    return tuple(sorted(chosen, key=lambda r: (radix == "auto" and r % 2 == 1, r)))


def _too_large(n: int, radix: Literal["auto"] | int) -> bool:
    limit = LARGEST_PRIME if radix == "auto" else max(radix, LARGEST_PRIME)
    return max(prime_factors(n), default=1) > limit


def _padded(inner: int, radix: Literal["auto"] | int) -> list[int]:
    """Sizes up to the next power of two whose prime factors are bearable, in ascending order."""
    top = 2 ** (inner - 1).bit_length()
    if radix == "auto" or radix <= LARGEST_PRIME:
        found = [1]
        for prime in (p for p in range(2, LARGEST_PRIME + 1) if prime_factors(p) == [p]):
            for n in found:  # grows while it is read
                if n * prime <= top:
                    found.append(n * prime)
        return sorted(n for n in found if n >= inner)
    if inner > _LARGEST_PADDED:
        raise StructureError(
            f"an inner size of {inner} needs padding, which radix = {radix} knows for sizes up to "
            f"{_LARGEST_PADDED}; give radix = 'auto' or a list of radices"
        )
    return [n for n in range(inner, top + 1) if not _too_large(n, radix)]


def _rectangular(inner: int, large: int, radix: Literal["auto"] | int) -> Layout:
    """Cheapest rectangular outermost factor that brings ``inner`` to at least ``large`` entries."""
    radices = _radices(inner, radix)

    def with_last(last: int) -> Layout:
        rest = list(radices)
        rest.remove(last)
        return Layout((*rest, last), -(-large // (inner // last)))

    enough = {r for r in radices if r >= _SMALLEST_RECTANGULAR_RADIX} or {max(radices)}
    return min((with_last(last) for last in enough), key=lambda c: c.cost)


def _unpadded_rectangular(small: int, large: int, radix: Literal["auto"] | int) -> Layout | None:
    """Cheapest layout without padding on either side, if the sizes have one of bearable radix."""
    found = []
    for last in range(min(small, _SMALLEST_RECTANGULAR_RADIX), min(small, _LARGEST_RADIX) + 1):
        if small % last or large % (small // last):
            continue
        rest = _radices(small // last, radix) if small > last else ()
        found.append(Layout((*rest, last), large // (small // last)))
    if small > LARGEST_PRIME:
        found = [candidate for candidate in found if candidate.outer <= _LARGEST_RADIX]
    return min(found, key=lambda c: c.cost, default=None)


@lru_cache(maxsize=4096)
def layout(in_features: int, out_features: int, expansion: int = 1, radix: Radix = "auto") -> Layout:
    """Choose inner size, radices and rectangular factor for a K-matrix.

    Sizes are padded only where they have a prime factor above ``LARGEST_PRIME`` (or above an
    integer ``radix``), or where the two sides share too little for a rectangular factor.

    Raises:
        StructureError: a size or the expansion is below 1, or the radices given do not reach the size.
    """
    if min(in_features, out_features, expansion) < 1:
        raise StructureError(
            f"sizes and expansion must be at least 1, got {in_features} → {out_features} "
            f"and expansion {expansion}"
        )
    inner, large = expansion * min(in_features, out_features), max(in_features, out_features)
    if isinstance(radix, Sequence) and radix != "auto":
        return _given(tuple(radix), inner, large)
    if radix != "auto" and radix < 2:
        raise StructureError(f"radix must be 'auto', an integer of at least 2 or a list of them, got {radix}")
    sizes = _padded(inner, radix) if _too_large(inner, radix) else [inner]
    if large <= inner:
        squares = (_radices(n, radix) for n in sizes)
        return min((Layout(r, r[-1]) for r in squares), key=lambda c: c.cost)
    if not _too_large(inner, radix):
        unpadded = _unpadded_rectangular(inner, large, radix)
        if unpadded is not None:
            return unpadded
        sizes = _padded(inner, radix)
    return min((_rectangular(n, large, radix) for n in sizes), key=lambda c: (c.cost, c.large))


def _given(radices: tuple[int, ...], inner: int, large: int) -> Layout:
    if not radices or min(radices) < 1:
        raise StructureError(f"radices must be integers of at least 1, got {list(radices)}")
    size = prod(radices)
    if size < inner:
        raise StructureError(
            f"radices {list(radices)} multiply to {size}, but the inner size (the smaller side times the "
            f"expansion) is {inner}; give radices whose product is at least {inner}, or radix = 'auto'"
        )
    return Layout(radices, max(radices[-1], -(-large // (size // radices[-1]))))


@lru_cache(maxsize=1024)
def transform_radices(n: int, symmetric: bool = False) -> tuple[int, ...]:
    """Radices of the cheapest mixed-radix transform of size n: multiplications, and 16 for an entry moved.

    Ascending; descending where it is ``symmetric``, since what comes after the first radix is then halved.

    Raises:
        StructureError: n is below 1.
    """
    if n < 1:
        raise StructureError(f"the size of a transform must be at least 1, got {n}")
    best: dict[int, tuple[int, tuple[int, ...]]] = {1: (0, ())}
    divisors = [r for r in range(1, n + 1) if n % r == 0]
    for size in divisors[1:]:
        options = []
        for r in divisors[1:]:
            if size % r == 0:
                cost, rest = best[size // r]
                options.append((cost + r + _MOVE, tuple(sorted((*rest, r)))))
        best[size] = min(options)
    radices = best[n][1] or (1,)
    return radices[::-1] if symmetric else radices
