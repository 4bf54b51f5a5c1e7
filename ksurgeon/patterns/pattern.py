"""Patterns of Kronecker-sparse factors, and the algebra of their supports."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import gcd, prod
from typing import NamedTuple

from ksurgeon.errors import StructureError

__all__ = [
    "Pattern",
    "axis_of",
    "butterfly_patterns",
    "check_chain",
    "hull",
    "kaleidoscope_patterns",
    "transposed_chain",
]


class Pattern(NamedTuple):
    """Support ``I_a ⊗ 1_{b×c} ⊗ I_d`` of a Kronecker-sparse factor.

    The factor maps ``a·c·d`` entries to ``a·b·d`` entries,
    ``y[a, o, d] = Σ_i w[a, d, o, i] · x[a, i, d]``; its parameter has shape ``(a, d, b, c)``.
    ``d`` is the stride of the factor, ``b`` and ``c`` are its output and input radix.
    """

    a: int
    b: int
    c: int
    d: int

    @property
    def in_features(self) -> int:
        """Entries of the vector that the factor takes."""
        return self.a * self.c * self.d

    @property
    def out_features(self) -> int:
        """Entries of the vector that the factor gives."""
        return self.a * self.b * self.d

    @property
    def numel(self) -> int:
        """Parameters of the factor, and multiplications per vector."""
        return self.a * self.b * self.c * self.d

    @property
    def rotations(self) -> int:
        """Angles of a factor whose blocks are rotations, which are square."""
        return self.a * self.d * self.b * (self.b - 1) // 2

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape ``(a, d, b, c)`` of the factor's parameter."""
        return (self.a, self.d, self.b, self.c)

    @property
    def transposed(self) -> "Pattern":
        """Pattern of the transposed factor."""
        return Pattern(self.a, self.c, self.b, self.d)

    @classmethod
    def of(cls, shape: Sequence[int]) -> "Pattern":
        """Pattern of a factor whose parameter has the shape ``(a, d, b, c)``."""
        if len(shape) != 4:
            raise StructureError(f"a factor has 4 dimensions (a, d, b, c), got shape {tuple(shape)}")
        a, d, b, c = shape
        return cls(a, b, c, d)


def check_chain(patterns: Iterable[Sequence[int]]) -> tuple[Pattern, ...]:
    """Return ``patterns``, in the order they are applied, once they are known to compose.

    Raises:
        StructureError: a pattern has a size below 1, or a factor's output does not fit the
            next factor's input, or there is no factor at all.
    """
    chain = tuple(Pattern(*pattern) for pattern in patterns)
    if not chain:
        raise StructureError("a chain needs at least one factor")
    for pattern in chain:
        if min(pattern) < 1:
            raise StructureError(f"pattern (a, b, c, d) = {tuple(pattern)}: every size must be at least 1")
    for position, (first, second) in enumerate(pairwise(chain)):
        if first.out_features != second.in_features:
            raise StructureError(
                f"factors {position} and {position + 1} do not compose: {tuple(first)} gives "
                f"{first.out_features} entries, {tuple(second)} takes {second.in_features}"
            )
    return chain


def axis_of(dim: int, dims: int) -> int:
    """A dimension of a tensor of ``dims`` dimensions, counted from 0.

    Raises:
        IndexError: it has no such dimension.
    """
    if not -dims <= dim < dims:
        raise IndexError(f"dimension {dim} of a tensor of {dims} dimensions: expected {-dims} to {dims - 1}")
    return dim + dims if dim < 0 else dim


def transposed_chain(patterns: Iterable[Pattern]) -> tuple[Pattern, ...]:
    """Patterns of the transposed product."""
    return tuple(pattern.transposed for pattern in reversed(tuple(patterns)))


def butterfly_patterns(radices: Sequence[int]) -> tuple[Pattern, ...]:
    """Patterns of the butterfly matrix B: strides 1, r1, r1·r2, … in the order applied.

    Radix 2 throughout is definition 2.3 of Dao et al. (ICLR 2020).
    """
    size, stride, chain = prod(radices), 1, []
    for radix in radices:
        chain.append(Pattern(size // (radix * stride), radix, radix, stride))
        stride *= radix
    return check_chain(chain)


def kaleidoscope_patterns(radices: Sequence[int], width: int) -> tuple[Pattern, ...]:
    """Patterns of ``(B B*)^width`` in the order applied, B* first (Dao et al., definition 2.4)."""
    butterfly = butterfly_patterns(radices)
    return (transposed_chain(butterfly) + butterfly) * width


def hull(first: Pattern, second: Pattern) -> Pattern:
    """Smallest pattern that holds every product of two neighbouring factors, ``first`` applied first.

    Both factors lie in ``I_a ⊗ M ⊗ I_d`` for a = gcd(a1, a2) and d = gcd(d1, d2); so does their product.
    """
    a, d = gcd(first.a, second.a), gcd(first.d, second.d)
    return Pattern(a, second.out_features // (a * d), first.in_features // (a * d), d)
