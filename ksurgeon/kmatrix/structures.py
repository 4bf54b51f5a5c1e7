"""The structures a rule can ask for: what ``with = { structure = … }`` holds, and the chains they give."""

from math import prod
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.patterns import Pattern, butterfly_patterns, check_chain, kaleidoscope_patterns
from ksurgeon.kmatrix.radix import Radix, layout, prime_factors, transform_radices

__all__ = ["Butterfly", "Chain", "Dense", "GroupedKaleidoscope", "Kaleidoscope", "Structure"]


def _as_radix(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


_Radix = Annotated[
    Literal["auto"] | Annotated[int, Field(ge=2)] | Annotated[tuple[PositiveInt, ...], Field(min_length=1)],
    BeforeValidator(_as_radix),
]


class _Base(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def patterns(self, in_features: int, out_features: int) -> tuple[Pattern, ...]:
        """Patterns of the chain, in the order applied, for a map of the sizes given.

        The chain may be wider than the sizes: its input is then padded with zeros, its output cropped.

        Raises:
            StructureError: the structure cannot have these sizes.
        """
        raise StructureError(f"{type(self).__name__} has no patterns for {in_features} → {out_features}")


class Kaleidoscope(_Base):
    """``S · (B₁B₁*)…(B_wB_w*) · Sᵀ``, the paper's (BB*)^w_e (Dao et al., definition 2.4).

    A rectangular map lives on its smaller side times the expansion; the outermost factor on the
    larger side is rectangular.
    """

    structure: Literal["kaleidoscope"] = "kaleidoscope"
    width: PositiveInt = 1
    expansion: PositiveInt = 1
    radix: _Radix = "auto"

    def patterns(self, in_features: int, out_features: int) -> tuple[Pattern, ...]:
        chosen = layout(in_features, out_features, self.expansion, self.radix)
        chain = list(kaleidoscope_patterns(chosen.radices, self.width))
        if out_features > in_features:
            chain[-1] = chain[-1]._replace(b=chosen.outer)
        elif in_features > out_features:
            chain[0] = chain[0]._replace(c=chosen.outer)
        return check_chain(chain)

    def __str__(self) -> str:
        return f"(BB*)^{self.width}, e={self.expansion}, radix {_show(self.radix)}"


class GroupedKaleidoscope(_Base):
    """A grouped dense map, then a square K-matrix that mixes its outputs across the groups.

    ShuffleNet's unit with the paper's K-matrix in the place of the shuffle (Dao et al., section 3.2).
    """

    structure: Literal["grouped_kaleidoscope"] = "grouped_kaleidoscope"
    groups: PositiveInt = 4
    width: PositiveInt = 1
    expansion: PositiveInt = 1
    radix: _Radix = "auto"

    def patterns(self, in_features: int, out_features: int) -> tuple[Pattern, ...]:
        if in_features % self.groups or out_features % self.groups:
            raise StructureError(f"{self.groups} groups do not divide {in_features} → {out_features}")
        mix = Kaleidoscope(width=self.width, expansion=self.expansion, radix=self.radix)
        chain = mix.patterns(out_features, out_features)
        if chain[0].in_features != out_features:
            raise StructureError(
                f"a K-matrix on {out_features} channels needs padding to {chain[0].in_features} "
                f"(expansion {self.expansion}, radix {_show(self.radix)}), which a grouped structure "
                "cannot have"
            )
        grouped = Pattern(self.groups, out_features // self.groups, in_features // self.groups, 1)
        return check_chain((grouped, *chain))

    def __str__(self) -> str:
        return f"{self.groups} groups, then (BB*)^{self.width}, e={self.expansion}, radix {_show(self.radix)}"


class Chain(_Base):
    """Any chain, its patterns (a, b, c, d) listed in the order they are applied."""

    structure: Literal["chain"] = "chain"
    factors: Annotated[tuple[Pattern, ...], Field(min_length=1)]

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


class Butterfly(_Base):
    """One butterfly matrix B, its entries in digit-reversed order before it: what a transform is exactly."""

    structure: Literal["butterfly"] = "butterfly"
    radix: _Radix = "auto"

    def radices(self, n: int) -> tuple[int, ...]:
        """Radices of a butterfly matrix of size n.

        Raises:
            StructureError: the radices given do not multiply to n.
        """
        if self.radix == "auto":
            return transform_radices(n)
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
                f"a butterfly matrix of size {n} needs radices that multiply to it, not {_show(self.radix)}"
            )
        return butterfly_patterns(radices)

    def __str__(self) -> str:
        return f"butterfly, radix {_show(self.radix)}"


class Dense(_Base):
    """One dense factor: any matrix as it is, which saves nothing and loses nothing."""

    structure: Literal["dense"] = "dense"

    def patterns(self, in_features: int, out_features: int) -> tuple[Pattern, ...]:
        return check_chain((Pattern(1, out_features, in_features, 1),))

    def __str__(self) -> str:
        return "dense"


Structure = Annotated[
    Kaleidoscope | GroupedKaleidoscope | Chain | Butterfly | Dense, Field(discriminator="structure")
]


def _show(radix: Radix) -> str:
    return str(radix) if isinstance(radix, (str, int)) else "·".join(map(str, radix))
