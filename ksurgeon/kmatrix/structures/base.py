"""What all structures are: a chain, and beside it, where there is one, a low-rank path."""

from collections.abc import Iterator
from difflib import get_close_matches
from inspect import Parameter, Signature
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.radix import Radix
from ksurgeon.patterns.pattern import Pattern, check_chain

__all__ = [
    "Base",
    "Count",
    "LowRank",
    "RadixField",
    "Share",
    "Size",
    "plus_low_rank",
    "rank_for",
    "register_sum",
    "require_one",
    "show_radix",
]


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
    """A structure: immutable, hashable, equal to another with the same values; unknown names are errors.

    The field that is declared with ``kw_only=False`` may be given by position.

    Raises:
        StructureError: a name that the structure does not have, or a value that it cannot have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, *args: Any, **values: Any) -> None:
        cls = type(self)
        names = [name for name, field in cls.model_fields.items() if field.kw_only is False]
        if len(args) > len(names):
            raise StructureError(
                f"{cls.__name__} takes {' and '.join(names) or 'nothing'} by position, and all else by name; "
                f"got {len(args)} positional values"
            )
        given = dict(zip(names, args, strict=False))
        if twice := given.keys() & values.keys():
            raise StructureError(f"{cls.__name__} got {min(twice)} by position and by name; give it once")
        try:
            super().__init__(**given, **values)
        except ValidationError as error:
            raise StructureError(_explain(cls, error)) from error

    # What pydantic reads from files and records does not pass through __init__, and is reported by key.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        names = [name for name in cls.model_fields if name != "structure"]
        fields = [(name, cls.model_fields[name]) for name in names]
        cls.__signature__ = Signature(
            [  # type: ignore[assignment]
                Parameter(
                    name,
                    Parameter.POSITIONAL_OR_KEYWORD if field.kw_only is False else Parameter.KEYWORD_ONLY,
                    default=Parameter.empty if field.is_required() else field.default,
                    annotation=field.annotation,
                )
                for name, field in sorted(fields, key=lambda pair: pair[1].kw_only is not False)
            ]
        )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value != field.default or (field.kw_only is False and value is not None):
                yield name, value

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


def _explain(cls: type[Base], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(map(str, first["loc"][:1]))
    allowed = [field for field in cls.model_fields if field != "structure"]
    if first["type"] == "extra_forbidden":
        near = get_close_matches(name, allowed, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(allowed) or 'none'}"
        return f"{cls.__name__} has no parameter {name}; {hint}"
    if first["type"] == "missing":
        return f"{cls.__name__} needs {name}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{cls.__name__}: {name} = {first['input']!r}: {message}" if name else f"{cls.__name__}: {message}"


class LowRank(Base):
    """A product of two dense factors, through ``rank`` entries.

    Give ``rank``, or ``share``, the parameters as a fraction of the dense matrix's. A chain plus a low rank
    is their sum: ``Kaleidoscope() + LowRank(16)``.

    Examples:
        >>> ksurgeon.convert(model, ksurgeon.LowRank(share=0.5), targets="encoder", data=loader)
    """

    structure: Literal["low_rank"] = "low_rank"
    rank: Size | None = Field(default=None, kw_only=False)
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


_SUMS: dict[type[Base], type[Base]] = {}


def register_sum(main: type[Base], kind: type[Base]) -> None:
    """Let ``kind`` be what a structure of the class ``main`` and a low rank add up to."""
    _SUMS[main] = kind


def plus_low_rank(main: Base, low_rank: LowRank) -> Any:
    """The sum of a chain's structure and a low rank.

    Raises:
        StructureError: a sum cannot hold the chain's parametrization or share, or the low rank has a share,
            which in a sum would be that of both.
    """
    if not isinstance(low_rank, LowRank):
        return NotImplemented
    if low_rank.rank is None:
        raise StructureError(
            f"{main!r} + {low_rank!r}: give the low rank of a sum as a rank, as in {main!r} + LowRank(16)"
        )
    kind = _SUMS[type(main)]
    values = main.model_dump(exclude={"structure"}, exclude_defaults=True)
    for name in values:
        if name == "share" or name not in kind.model_fields:
            raise StructureError(f"{main!r} + {low_rank!r}: a sum has no {name} of its chain; leave it out")
    return kind(**values, rank=low_rank.rank)


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
