"""The structures a rule can ask for: what ``with = { structure = … }`` holds, and the chains they give."""

from math import prod
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.patterns import Pattern, butterfly_patterns, check_chain, kaleidoscope_patterns
from ksurgeon.kmatrix.radix import Radix, layout, prime_factors, transform_radices

__all__ = [
    "Butterfly",
    "Chain",
    "ChainLowRank",
    "Dense",
    "GroupedKaleidoscope",
    "Kaleidoscope",
    "KaleidoscopeLowRank",
    "LowRank",
    "Monarch",
    "MonarchLowRank",
    "Structure",
    "Sum",
]


def _as_radix(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


_Radix = Annotated[
    Literal["auto"] | Annotated[int, Field(ge=2)] | Annotated[tuple[PositiveInt, ...], Field(min_length=1)],
    BeforeValidator(_as_radix),
]
_Share = Annotated[float, Field(gt=0, le=1)]
_Factors = Annotated[tuple[Pattern, ...], Field(min_length=1)]


class _Base(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def patterns(self, in_features: int, out_features: int) -> tuple[Pattern, ...]:
        """Patterns of the chain, in the order applied, for a map of the sizes given.

        The chain may be wider than the sizes: its input is then padded with zeros, its output cropped.

        Raises:
            StructureError: the structure cannot have these sizes.
        """
        raise StructureError(f"{type(self).__name__} has no patterns for {in_features} → {out_features}")

    def side(self, in_features: int, out_features: int) -> "LowRank | None":
        """The low-rank path that is added to the chain; None for a structure that is a chain alone.

        Raises:
            StructureError: the structure cannot have these sizes.
        """
        return None

    def parameters(self, in_features: int, out_features: int) -> int:
        """Parameters of the whole structure, which are also multiplications per vector.

        Raises:
            StructureError: the structure cannot have these sizes.
        """
        side = self.side(in_features, out_features)
        return sum(pattern.numel for pattern in self.patterns(in_features, out_features)) + (
            side.parameters(in_features, out_features) if side else 0
        )


class _Widths(_Base):
    width: PositiveInt = 1
    expansion: PositiveInt = 1
    radix: _Radix = "auto"


class Kaleidoscope(_Widths):
    """``S · (B₁B₁*)…(B_wB_w*) · Sᵀ``, the paper's (BB*)^w_e (Dao et al., definition 2.4).

    A rectangular map lives on its smaller side times the expansion; the outermost factor on the
    larger side is rectangular.
    """

    structure: Literal["kaleidoscope"] = "kaleidoscope"

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


class GroupedKaleidoscope(_Widths):
    """A grouped dense map, then a square K-matrix that mixes its outputs across the groups.

    ShuffleNet's unit with the paper's K-matrix in the place of the shuffle (Dao et al., section 3.2).
    """

    structure: Literal["grouped_kaleidoscope"] = "grouped_kaleidoscope"
    groups: PositiveInt = 4

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
    factors: _Factors

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


class LowRank(_Base):
    """A product of two dense factors, through ``rank`` entries.

    Give ``rank``, or ``share``, the parameters as a fraction of the dense matrix's.
    """

    structure: Literal["low_rank"] = "low_rank"
    rank: PositiveInt | None = None
    share: _Share | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        _require_one(self.rank, self.share)
        return self

    def patterns(self, in_features: int, out_features: int) -> tuple[Pattern, ...]:
        rank, most = self.rank, min(in_features, out_features)
        if rank is None:
            assert self.share is not None
            rank = _rank_for(self.share * in_features * out_features, in_features, out_features)
        if rank > most:
            raise StructureError(f"rank {rank} for {in_features} → {out_features}; it can be {most} at most")
        return check_chain((Pattern(1, rank, in_features, 1), Pattern(1, out_features, rank, 1)))

    def __str__(self) -> str:
        return f"rank {self.rank}" if self.rank else f"rank for {self.share:.3g} of the parameters"


class Monarch(_Base):
    """Two factors of ``blocks`` blocks each: the first's side by side, the second's interleaved.

    Rows of one residue modulo ``blocks`` and columns of one of ``blocks`` groups make up a block of the
    matrix whose rank is ``block_rank``; with b blocks and block rank r it has the parameters of a low rank of
    b·r. Left out, the block rank is what brings the inner size to the smaller side, as in Dao et al.
    ("Monarch: Expressive structured matrices for efficient and accurate training", ICML 2022). ``share`` asks
    for so many parameters, as a fraction of the dense matrix's. Sizes that ``blocks`` does not divide are
    padded.
    """

    structure: Literal["monarch"] = "monarch"
    blocks: Annotated[int, Field(ge=2)] = 4
    block_rank: PositiveInt | None = None
    share: _Share | None = None

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.block_rank is not None and self.share is not None:
            raise ValueError("give block_rank or share, not both")
        return self

    def patterns(self, in_features: int, out_features: int) -> tuple[Pattern, ...]:
        blocks, rank = self.blocks, self.block_rank
        if blocks > min(in_features, out_features):
            raise StructureError(f"{blocks} blocks are too many for {in_features} → {out_features}")
        columns, rows = -(-in_features // blocks), -(-out_features // blocks)
        if rank is None and self.share is not None:
            sides = blocks**2 * columns, blocks**2 * rows
            rank = _rank_for(self.share * in_features * out_features, *sides)
        elif rank is None:
            rank = max(1, round(min(in_features, out_features) / blocks**2))
        if rank > min(columns, rows):
            raise StructureError(
                f"blocks of rank {rank} for {in_features} → {out_features} in {blocks} × {blocks} blocks; "
                f"they can have rank {min(columns, rows)} at most"
            )
        inner = blocks * rank
        return check_chain((Pattern(blocks, inner, columns, 1), Pattern(1, rows, inner, blocks)))

    def __str__(self) -> str:
        how = f" of rank {self.block_rank}" if self.block_rank else ""
        return f"Monarch, {self.blocks} blocks{how}" + (
            f", {self.share:.3g} of the parameters" if self.share else ""
        )


class Sum(_Base):
    """A chain plus a low-rank path beside it: ``y = K x + U V x``.

    Give ``rank``, that of the path, or ``share``, the parameters of both together as a fraction of the dense
    matrix's, of which the path gets what the chain leaves.
    """

    rank: PositiveInt | None = None
    share: _Share | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        _require_one(self.rank, self.share)
        return self

    @property
    def main(self) -> "Kaleidoscope | Monarch | Chain":
        """The chain's structure."""
        raise AttributeError(f"{type(self).__name__} has no chain of its own")

    def patterns(self, in_features: int, out_features: int) -> tuple[Pattern, ...]:
        return self.main.patterns(in_features, out_features)

    def side(self, in_features: int, out_features: int) -> LowRank:
        if self.rank is not None:
            return LowRank(rank=self.rank)
        assert self.share is not None
        budget = self.share * in_features * out_features
        left = budget - self.main.parameters(in_features, out_features)
        if left < in_features + out_features:
            raise StructureError(
                f"a share of {self.share:.3g} of {in_features} → {out_features} is {int(budget)} parameters, "
                f"of which the chain ({self.main}) leaves {int(left)}; a rank of 1 takes "
                f"{in_features + out_features}"
            )
        rank = min(_rank_for(left, in_features, out_features), in_features, out_features)
        return LowRank(rank=rank)

    def __str__(self) -> str:
        beside = f"rank {self.rank}" if self.rank else f"rank for {self.share:.3g} of the parameters in all"
        return f"{self.main} + {beside}"


class KaleidoscopeLowRank(Sum, _Widths):
    """A K-matrix plus a low-rank path."""

    structure: Literal["kaleidoscope+low_rank"] = "kaleidoscope+low_rank"

    @property
    def main(self) -> Kaleidoscope:
        return Kaleidoscope(width=self.width, expansion=self.expansion, radix=self.radix)


class MonarchLowRank(Sum):
    """A Monarch matrix plus a low-rank path."""

    structure: Literal["monarch+low_rank"] = "monarch+low_rank"
    blocks: Annotated[int, Field(ge=2)] = 4
    block_rank: PositiveInt | None = None

    @property
    def main(self) -> Monarch:
        return Monarch(blocks=self.blocks, block_rank=self.block_rank)


class ChainLowRank(Sum):
    """Any chain plus a low-rank path."""

    structure: Literal["chain+low_rank"] = "chain+low_rank"
    factors: _Factors

    @property
    def main(self) -> Chain:
        return Chain(factors=self.factors)


Structure = Annotated[
    Kaleidoscope
    | GroupedKaleidoscope
    | Monarch
    | LowRank
    | KaleidoscopeLowRank
    | MonarchLowRank
    | ChainLowRank
    | Chain
    | Butterfly
    | Dense,
    Field(discriminator="structure"),
]


def _require_one(rank: int | None, share: float | None) -> None:
    if (rank is None) == (share is None):
        raise ValueError(f"give rank or share, {'one of them' if rank is None else 'not both'}")


def _rank_for(parameters: float, in_features: int, out_features: int) -> int:
    """The largest rank that so many parameters pay for, at least 1."""
    return max(1, int(parameters / (in_features + out_features)))


def _show(radix: Radix) -> str:
    return str(radix) if isinstance(radix, (str, int)) else "·".join(map(str, radix))
