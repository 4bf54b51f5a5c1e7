"""Structures that are one chain: K-matrices, butterflies, any other, and the dense matrix."""

from math import prod
from typing import ClassVar, Literal

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.radix import Radix, layout, prime_factors, transform_radices
from ksurgeon.kmatrix.structures.base import Structure, show_radix
from ksurgeon.kmatrix.structures.fields import chain, count, radices, size
from ksurgeon.kmatrix.structures.registry import register_structure
from ksurgeon.kmatrix.structures.sums import Summable
from ksurgeon.patterns.pattern import Pattern, butterfly_patterns, check_chain, kaleidoscope_patterns

__all__ = ["Butterfly", "Chain", "Dense", "GroupedKaleidoscope", "Kaleidoscope"]


@register_structure("kaleidoscope")
class Kaleidoscope(Summable):
    """``S · (B₁B₁*)…(B_wB_w*) · Sᵀ``, the paper's (BB*)^w_e (Dao et al., definition 2.4).

    A rectangular map lives on its smaller side times the expansion; the outermost factor on the
    larger side is rectangular. With the ``parametrization`` "orthogonal" a square one is trained by angles
    (see ``Rotations``), n log n of them.

    Examples:
        >>> ksurgeon.KLinear(768, 768, structure=ksurgeon.Kaleidoscope(2, radix="auto"))
        >>> ksurgeon.Kaleidoscope() + ksurgeon.LowRank(16)  # a K-matrix plus a low-rank branch
    """

    not_in_sums: ClassVar = ("parametrization",)

    width: int = count(default=1, kw_only=False)
    expansion: int = count(default=1)
    radix: Radix = radices(default="auto")
    parametrization: Literal["free", "orthogonal"] = "free"

    def patterns(self, in_features: int, out_features: int) -> tuple[Pattern, ...]:
        if self.parametrization == "orthogonal" and in_features != out_features:
            raise StructureError(
                f'parametrization = "orthogonal" is for square maps, got {in_features} → {out_features}; '
                'use parametrization = "free"'
            )
        chosen = layout(in_features, out_features, self.expansion, self.radix)
        chain = list(kaleidoscope_patterns(chosen.radices, self.width))
        if out_features > in_features:
            chain[-1] = chain[-1]._replace(b=chosen.outer)
        elif in_features > out_features:
            chain[0] = chain[0]._replace(c=chosen.outer)
        return check_chain(chain)

    def parameters(self, in_features: int, out_features: int) -> int:
        numel = self.multiplications(in_features, out_features)
        if self.parametrization == "free":
            return numel
        chain = self.patterns(in_features, out_features)
        return sum(pattern.rotations for pattern in chain) + self.width * chain[0].in_features

    def __str__(self) -> str:
        by_angles = ", orthogonal" if self.parametrization == "orthogonal" else ""
        return f"(BB*)^{self.width}, e={self.expansion}, radix {show_radix(self.radix)}{by_angles}"


@register_structure("grouped_kaleidoscope")
class GroupedKaleidoscope(Structure):
    """A grouped dense map, then a square K-matrix that mixes its outputs across the groups.

    ShuffleNet's unit with the paper's K-matrix in the place of the shuffle (Dao et al., section 3.2).

    Examples:
        >>> ksurgeon.convert(model, ksurgeon.GroupedKaleidoscope(8), targets="stage3")
    """

    groups: int = size(default=4, kw_only=False)
    width: int = count(default=1)
    expansion: int = count(default=1)
    radix: Radix = radices(default="auto")

    def patterns(self, in_features: int, out_features: int) -> tuple[Pattern, ...]:
        if in_features % self.groups or out_features % self.groups:
            raise StructureError(f"{self.groups} groups do not divide {in_features} → {out_features}")
        mix = Kaleidoscope(width=self.width, expansion=self.expansion, radix=self.radix)
        chain = mix.patterns(out_features, out_features)
        if chain[0].in_features != out_features:
            raise StructureError(
                f"a K-matrix on {out_features} channels needs padding to {chain[0].in_features} "
                f"(expansion {self.expansion}, radix {show_radix(self.radix)}), which a grouped structure "
                "cannot have"
            )
        grouped = Pattern(self.groups, out_features // self.groups, in_features // self.groups, 1)
        return check_chain((grouped, *chain))

    def __str__(self) -> str:
        radix = show_radix(self.radix)
        return f"{self.groups} groups, then (BB*)^{self.width}, e={self.expansion}, radix {radix}"


@register_structure("chain")
class Chain(Summable):
    """Any chain, its patterns (a, b, c, d) listed in the order they are applied.

    Examples:
        >>> ksurgeon.KMatrix(24, 30, structure=ksurgeon.Chain(((2, 3, 4, 3), (1, 5, 3, 6))))
    """

    factors: tuple[tuple[int, int, int, int], ...] = chain(kw_only=False)

    def patterns(self, in_features: int, out_features: int) -> tuple[Pattern, ...]:
        chain = check_chain(self.factors)
        if chain[0].in_features < in_features or chain[-1].out_features < out_features:
            raise StructureError(
                f"the chain maps {chain[0].in_features} → {chain[-1].out_features}, "
                f"too small for {in_features} → {out_features}"
            )
        return chain

    def __str__(self) -> str:
        return "chain " + " · ".join(str(tuple(pattern)) for pattern in self.factors)


@register_structure("butterfly")
class Butterfly(Structure):
    """One butterfly matrix B, its entries in digit-reversed order before it: what a transform is exactly.

    With ``symmetric`` it has the symmetry of an FFT of real input, which saves most where the first radix is
    large; the automatic ones then descend.

    Examples:
        >>> ksurgeon.convert(model, ksurgeon.Butterfly())  # transforms and filterbanks
    """

    radix: Radix = radices(default="auto", kw_only=False)
    symmetric: bool = False

    def radices(self, n: int) -> tuple[int, ...]:
        """Radices of a butterfly matrix of size n.

        Raises:
            StructureError: the radices given do not multiply to n.
        """
        if self.radix == "auto":
            return transform_radices(n, self.symmetric)
        if isinstance(self.radix, int):
            return (
                layout(n, n, 1, self.radix).radices if max(prime_factors(n), default=1) <= self.radix else ()
            )
        return self.radix

    def patterns(self, in_features: int, out_features: int) -> tuple[Pattern, ...]:
        n = max(in_features, out_features)
        radices = self.radices(n)
        if prod(radices) != n or not radices:
            raise StructureError(
                f"a butterfly matrix of size {n} needs radices that multiply to it, "
                f"not {show_radix(self.radix)}"
            )
        return butterfly_patterns(radices)

    def __str__(self) -> str:
        return f"butterfly, radix {show_radix(self.radix)}{', symmetric' if self.symmetric else ''}"


@register_structure("dense")
class Dense(Structure):
    """One dense factor: any matrix as it is, which saves nothing and loses nothing.

    Examples:
        >>> ksurgeon.convert(model, {"head": ksurgeon.Dense(), "mlp": ksurgeon.Monarch(4)})
    """

    def patterns(self, in_features: int, out_features: int) -> tuple[Pattern, ...]:
        return check_chain((Pattern(1, out_features, in_features, 1),))

    def __str__(self) -> str:
        return "dense"
