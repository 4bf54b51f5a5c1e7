"""A chain plus a low-rank path."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.structures.base import Base, LowRank, Share, Size, rank_for, register_sum, require_one
from ksurgeon.kmatrix.structures.chains import Chain, Factors, Kaleidoscope, Widths
from ksurgeon.kmatrix.structures.monarch import Monarch
from ksurgeon.patterns.pattern import Pattern

__all__ = ["ChainLowRank", "KaleidoscopeLowRank", "MonarchLowRank", "Sum"]


class Sum(Base):
    """A chain plus a low-rank path beside it: ``y = K x + U V x``.

    Give ``rank``, that of the path, or ``share``, the parameters of both together as a fraction of the dense
    matrix's, of which the path gets what the chain leaves.
    """

    rank: Size | None = None
    share: Share | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        require_one(self.rank, self.share)
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
        rank = min(rank_for(left, in_features, out_features), in_features, out_features)
        return LowRank(rank=rank)

    def __repr__(self) -> str:
        return f"{self.main!r} + {LowRank(self.rank)!r}" if self.rank else super().__repr__()

    def __str__(self) -> str:
        beside = f"rank {self.rank}" if self.rank else f"rank for {self.share:.3g} of the parameters in all"
        return f"{self.main} + {beside}"


class KaleidoscopeLowRank(Sum, Widths):
    """A K-matrix plus a low-rank path."""

    structure: Literal["kaleidoscope+low_rank"] = "kaleidoscope+low_rank"

    @property
    def main(self) -> Kaleidoscope:
        return Kaleidoscope(width=self.width, expansion=self.expansion, radix=self.radix)


class MonarchLowRank(Sum):
    """A Monarch matrix plus a low-rank path."""

    structure: Literal["monarch+low_rank"] = "monarch+low_rank"
    blocks: Annotated[Size, Field(ge=2)] = 4
    block_rank: Size | None = None

    @property
    def main(self) -> Monarch:
        return Monarch(blocks=self.blocks, block_rank=self.block_rank)


class ChainLowRank(Sum):
    """Any chain plus a low-rank path."""

    structure: Literal["chain+low_rank"] = "chain+low_rank"
    factors: Factors

    @property
    def main(self) -> Chain:
        return Chain(factors=self.factors)


register_sum(Kaleidoscope, KaleidoscopeLowRank)
register_sum(Monarch, MonarchLowRank)
register_sum(Chain, ChainLowRank)
