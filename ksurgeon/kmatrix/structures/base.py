"""What all structures are: a chain, and beside it, where there is one, a low-rank path."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.radix import Radix
from ksurgeon.patterns.pattern import Pattern, check_chain

__all__ = ["Base", "Count", "LowRank", "RadixField", "Share", "Size", "rank_for", "require_one", "show_radix"]


def _as_radix(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


LARGEST_SIZE = 2**31
"""Of one dimension; what is larger comes from a damaged file."""

_GROWTH, _SMALL = 64, 2**20
Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]
Count = Annotated[int, Field(ge=1, le=64)]
RadixField = Annotated[
    Literal["auto"]
    | Annotated[int, Field(ge=2, le=LARGEST_SIZE)]
    | Annotated[tuple[Size, ...], Field(min_length=1, max_length=64)],
    BeforeValidator(_as_radix),
]
Share = Annotated[float, Field(gt=0, le=1)]


class Base(BaseModel):
    """What a rule gives of a structure; unknown keys are errors."""

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
        """Parameters of the whole structure.

        Raises:
            StructureError: as of ``multiplications``.
        """
        return self.multiplications(in_features, out_features)

    def multiplications(self, in_features: int, out_features: int) -> int:
        """Multiplications per vector of the whole structure: entries of its factors.

        Raises:
            StructureError: the structure cannot have these sizes, or is 64 times as large as a dense matrix.
        """
        side = self.side(in_features, out_features)
        numel = sum(pattern.numel for pattern in self.patterns(in_features, out_features)) + (
            side.multiplications(in_features, out_features) if side else 0
        )
        if numel > _GROWTH * in_features * out_features + _SMALL:
            raise StructureError(
                f"{self} of {in_features} → {out_features} would have {numel:,} parameters, more than "
                f"{_GROWTH} times those of the dense matrix"
            )
        return numel


class LowRank(Base):
    """A product of two dense factors, through ``rank`` entries.

    Give ``rank``, or ``share``, the parameters as a fraction of the dense matrix's.
    """

    structure: Literal["low_rank"] = "low_rank"
    rank: Size | None = None
    share: Share | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        require_one(self.rank, self.share)
        return self

    def patterns(self, in_features: int, out_features: int) -> tuple[Pattern, ...]:
        rank, most = self.rank, min(in_features, out_features)
        if rank is None:
            assert self.share is not None
            rank = rank_for(self.share * in_features * out_features, in_features, out_features)
        if rank > most:
            raise StructureError(f"rank {rank} for {in_features} → {out_features}; it can be {most} at most")
        return check_chain((Pattern(1, rank, in_features, 1), Pattern(1, out_features, rank, 1)))

    def __str__(self) -> str:
        return f"rank {self.rank}" if self.rank else f"rank for {self.share:.3g} of the parameters"


def require_one(rank: int | None, share: float | None) -> None:
    """Raise ``ValueError``, which pydantic reports, unless exactly one of both is given."""
    if (rank is None) == (share is None):
        raise ValueError(f"give rank or share, {'one of them' if rank is None else 'not both'}")


def rank_for(parameters: float, in_features: int, out_features: int) -> int:
    """The largest rank that so many parameters pay for, at least 1."""
    return max(1, int(parameters / (in_features + out_features)))


def show_radix(radix: Radix) -> str:
    """Radices as people read them: ``4·4·3``."""
    return str(radix) if isinstance(radix, (str, int)) else "·".join(map(str, radix))
