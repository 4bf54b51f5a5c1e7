"""Low rank, and the sum of a chain and a low rank."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.structures.base import Structure
from ksurgeon.kmatrix.structures.fields import share, size
from ksurgeon.kmatrix.structures.registry import register_structure, with_names
from ksurgeon.patterns.pattern import Pattern, check_chain

__all__ = ["PLUS", "LowRank", "Sum", "Summable", "rank_for"]

PLUS = "+low_rank"
"""What follows the name of a chain in the name of its sum."""


@register_structure("low_rank")
class LowRank(Structure):
    """A product of two dense factors, through ``rank`` entries.

    Give ``rank``, or ``share``, the parameters as a fraction of the dense matrix's. A chain plus a low rank
    is their sum: ``Kaleidoscope() + LowRank(16)``.

    Examples:
        >>> ksurgeon.convert(model, ksurgeon.LowRank(share=0.5), targets="encoder", data=loader)
    """

    rank: int | None = size(default=None, kw_only=False)
    share: float | None = share(default=None)

    def check(self) -> None:
        require_one(self.rank, self.share)

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


class Summable(Structure):
    """A chain to which a low rank can be added: ``Monarch(4) + LowRank(16)`` is their sum."""

    not_in_sums: ClassVar[Sequence[str]] = ("share",)
    """Fields that must be as they are by default in a sum, whose own share is that of both together."""

    def __add__(self, low_rank: LowRank) -> "Sum":
        if not isinstance(low_rank, LowRank):
            return NotImplemented
        if low_rank.rank is None:
            raise StructureError(
                f"{self!r} + {low_rank!r}: give the low rank of a sum as a rank, as in {self!r} + LowRank(16)"
            )
        return Sum(self, rank=low_rank.rank)

    __radd__ = __add__


@with_names
@dataclass(frozen=True, repr=False)
class Sum(Structure):
    """A chain plus a low-rank path beside it: ``y = K x + U V x``.

    Give ``rank``, that of the path, or ``share``, the parameters of both together as a fraction of the dense
    matrix's, of which the path gets what the chain leaves. In a rule file it has the name and the values of
    its chain beside its own: ``{ structure = "monarch+low_rank", blocks = 8, rank = 4 }``.

    Examples:
        >>> ksurgeon.Kaleidoscope() + ksurgeon.LowRank(16)  # the same as Sum(Kaleidoscope(), rank=16)
        >>> ksurgeon.Sum(ksurgeon.Monarch(8), share=0.5)
    """

    main: Summable
    rank: int | None = size(default=None)
    share: float | None = share(default=None)

    @property
    def structure(self) -> str:
        return f"{self.main.structure}{PLUS}"

    def check(self) -> None:
        if not isinstance(self.main, Summable):
            raise ValueError(f"a low rank is added to a chain such as Monarch(4), not to {self.main!r}")
        for one in fields(self.main):  # type: ignore[arg-type]
            if one.name in self.main.not_in_sums and getattr(self.main, one.name) != one.default:
                raise ValueError(f"a sum has no {one.name} of its chain, {self.main!r}; leave it out")
        require_one(self.rank, self.share)

    def to_dict(self, defaults: bool = True) -> dict[str, Any]:
        own = {"rank": self.rank, "share": self.share}
        main = self.main.to_dict(defaults).items()
        return (
            {name: value for name, value in main if name not in self.main.not_in_sums}
            | {name: value for name, value in own.items() if defaults or value is not None}
            | {"structure": self.structure}
        )

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
        if self.rank:
            return f"{self.main!r} + {LowRank(self.rank)!r}"
        return f"Sum({self.main!r}, share={self.share!r})"

    def __str__(self) -> str:
        beside = f"rank {self.rank}" if self.rank else f"rank for {self.share:.3g} of the parameters in all"
        return f"{self.main} + {beside}"


def require_one(rank: int | None, share: float | None) -> None:
    """Raise ``ValueError`` unless exactly one of both is given."""
    if (rank is None) == (share is None):
        raise ValueError(f"give rank or share, {'one of them' if rank is None else 'not both'}")


def rank_for(parameters: float, in_features: int, out_features: int) -> int:
    """The largest rank that so many parameters pay for, at least 1."""
    return max(1, int(parameters / (in_features + out_features)))
