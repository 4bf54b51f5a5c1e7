"""What all structures are: values from which a matrix of any size is made."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.structures.fields import hints_of, value_of
from ksurgeon.late import late
from ksurgeon.patterns.pattern import Pattern

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

    from ksurgeon.kmatrix.radix import Radix
    from ksurgeon.kmatrix.structured import StructuredMatrix

__all__ = ["Structure", "show_radix"]

_GROWTH, _SMALL = 64, 2**20


class Structure:
    """A structure: immutable, hashable, equal to another with the same values.

    One of your own is a class with annotated fields under ``register_structure``, which makes it a frozen
    dataclass. It either gives the ``patterns`` of a chain of Kronecker-sparse factors, and has then
    everything that chains have (fits, kernels, int8, prepacked weights), or it makes a module of its own in
    ``new_matrix``.

    Raises:
        StructureError: a name that the structure does not have, or a value that it cannot have.

    Examples:
        >>> @ksurgeon.register_structure("block_diagonal")
        ... class BlockDiagonal(ksurgeon.Structure):
        ...     blocks: int = 4
        ...
        ...     def patterns(self, in_features, out_features):
        ...         return (Pattern(self.blocks, out_features // self.blocks, in_features // self.blocks, 1),)
        >>> ksurgeon.convert(model, BlockDiagonal(blocks=8), targets="mlp")
    """

    registered_as: ClassVar[str] = ""

    @property
    def structure(self) -> str:
        """What ``structure =`` says in a rule file."""
        return self.registered_as

    @property
    def is_chain(self) -> bool:
        """Whether a ``KMatrix`` holds it: it has patterns, and no matrix of its own."""
        return type(self).new_matrix is Structure.new_matrix

    def __post_init__(self) -> None:
        hints = hints_of(type(self))
        for declared in fields(self):  # type: ignore[arg-type]
            given = getattr(self, declared.name)
            try:
                object.__setattr__(self, declared.name, value_of(declared, hints.get(declared.name), given))
            except ValueError as error:
                raise StructureError(
                    f"{type(self).__name__}: {declared.name} = {given!r}: {error}"
                ) from error
        try:
            self.check()
        except ValueError as error:
            raise StructureError(f"{type(self).__name__}: {error}") from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state.get("__dict__", state))  # earlier versions were models of pydantic

    def check(self) -> None:
        """Raise ``ValueError`` where values do not go together."""

    def __repr__(self) -> str:
        shown = []
        for declared in fields(self):  # type: ignore[arg-type]
            value = getattr(self, declared.name)
            if value != declared.default or (not declared.kw_only and value is not None):
                shown.append(f"{declared.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __str__(self) -> str:
        return repr(self)

    def to_dict(self, defaults: bool = True) -> dict[str, Any]:
        """The values as in a rule file; those that are as they would be anyway may be left out.

        Raises:
            StructureError: the class is not registered, so that no file could name it.
        """
        if "registered_as" not in vars(type(self)):
            raise StructureError(
                f"{type(self).__name__} has no name of its own, which files would call it by; put it under "
                "ksurgeon.register_structure"
            )
        values = {one.name: (getattr(self, one.name), one.default) for one in fields(self)}  # type: ignore[arg-type]
        kept = {name: value for name, (value, default) in values.items() if defaults or value != default}
        return {"structure": self.structure, **kept}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        schema: CoreSchema = late("structure_schema")(cls)
        return schema

    @classmethod
    def candidates(cls, in_features: int, out_features: int) -> "Sequence[Self]":
        """What the planner tries for a layer of these sizes; nothing, unless the structure says so."""
        return ()

    def patterns(self, in_features: int, out_features: int) -> tuple[Pattern, ...]:
        """Patterns of the chain, in the order applied, for a map of the sizes given.

        The chain may be wider than the sizes: its input is then padded with zeros, its output cropped.

        Raises:
            StructureError: the structure cannot have these sizes, or is no chain.
        """
        raise StructureError(f"{self} is no chain of factors for {in_features} → {out_features}")

    def side(self, in_features: int, out_features: int) -> "Structure | None":
        """The low-rank path that is added to the chain; None for a structure that is a chain alone.

        Raises:
            StructureError: the structure cannot have these sizes.
        """
        return None

    def new_matrix(
        self,
        in_features: int,
        out_features: int,
        *,
        groups: int = 1,
        start: str = "random",
        device: "torch.device | str | None" = None,
        dtype: "torch.dtype | None" = None,
    ) -> "StructuredMatrix | None":
        """A matrix of this structure, or None for a chain, which a ``KMatrix`` holds.

        Args:
            in_features, out_features: of all groups together.
            groups: the matrix is block-diagonal with so many of them.
            start: "random", "orthogonal", "identity", or "empty" for values that are set afterwards.

        Raises:
            StructureError: the structure cannot have these sizes, groups or start.
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


def show_radix(radix: "Radix") -> str:
    """Radices as people read them: ``4·4·3``."""
    return str(radix) if isinstance(radix, (str, int)) else "·".join(map(str, radix))
