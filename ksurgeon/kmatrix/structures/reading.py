"""Structures as pydantic's models hold them: a table with ``structure`` and the values, both ways."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.structures.base import Structure
from ksurgeon.kmatrix.structures.fields import problems
from ksurgeon.kmatrix.structures.registry import registered, structure_class
from ksurgeon.kmatrix.structures.sums import PLUS, Sum, Summable

__all__ = ["keys_of", "read_structure", "structure_names", "structure_schema"]

_OF_SUMS = ("rank", "share")


def structure_schema(cls: type[Structure]) -> CoreSchema:
    """How a model reads and writes structures of a class."""

    def read(value: object) -> Structure:
        structure = value if isinstance(value, Structure) else read_structure(value)
        if not isinstance(structure, cls):
            raise ValueError(f"expected a {cls.__name__}, got {structure!r}")
        return structure

    def write(structure: Structure, info: core_schema.SerializationInfo) -> dict[str, Any]:
        return structure.to_dict(defaults=not info.exclude_defaults)

    return core_schema.no_info_plain_validator_function(
        read, serialization=core_schema.plain_serializer_function_ser_schema(write, info_arg=True)
    )


def structure_names() -> list[str]:
    """All names that ``structure =`` may have, sums among them."""
    known = registered()
    return [*known, *(f"{name}{PLUS}" for name, cls in known.items() if issubclass(cls, Summable))]


def keys_of(name: object) -> list[str]:
    """Keys that the table of a structure may have; none of one that is not known."""
    try:
        cls, is_sum = _class_of(name)
    except StructureError:
        return []
    names = [key for key in _fields(cls) if not (is_sum and key in cls.not_in_sums)]  # type: ignore[attr-defined]
    return ["structure", *names, *(_OF_SUMS if is_sum else ())]


def read_structure(table: object) -> Structure:
    """The structure that a table of a file says.

    Raises:
        ValidationError: of pydantic, with all that is wrong, by key.
        ValueError: it is no table, or its values do not go together.
    """
    if not isinstance(table, Mapping):
        raise ValueError('expected a table such as { structure = "monarch", blocks = 4 }')
    values = {str(key): value for key, value in table.items() if key != "structure"}
    try:
        cls, is_sum = _class_of(table.get("structure"))
    except StructureError as error:
        message = PydanticCustomError("structure", "{reason}", {"reason": str(error)})
        raise _invalid(
            [InitErrorDetails(type=message, loc=("structure",), input=table.get("structure"))]
        ) from None
    own = {key: values.pop(key) for key in _OF_SUMS if key in values} if is_sum else {}
    lines = [_line(kind, name, why, values) for kind, name, why in problems(cls, values)]
    lines += [_line(kind, name, why, own) for kind, name, why in problems(Sum, own) if name != "main"]
    if lines:
        raise _invalid(lines)
    try:
        structure = cls(**values)
        return Sum(structure, **own) if is_sum else structure  # type: ignore[arg-type]
    except StructureError as error:
        raise ValueError(str(error).removeprefix(f"{cls.__name__}: ").removeprefix("Sum: ")) from error


def _class_of(name: object) -> tuple[type[Structure], bool]:
    """The class, of a sum that of its chain, and whether it is a sum."""
    if isinstance(name, str) and name.endswith(PLUS):
        cls = structure_class(name.removesuffix(PLUS))
        if issubclass(cls, Summable):
            return cls, True
    if not isinstance(name, str):
        raise StructureError(f"allowed: {', '.join(structure_names())}")
    return structure_class(name), False


def _fields(cls: type[Structure]) -> list[str]:
    return list(cls.__dataclass_fields__)  # type: ignore[attr-defined]


def _invalid(lines: list[InitErrorDetails]) -> ValidationError:
    return ValidationError.from_exception_data("Structure", lines)


def _line(kind: str, name: str, why: str, values: Mapping[str, Any]) -> InitErrorDetails:
    types: dict[str, Any] = {"unknown": "extra_forbidden", "missing": "missing"}
    error = types.get(kind) or PydanticCustomError("value", "{reason}", {"reason": why})
    return InitErrorDetails(type=error, loc=(name,), input=values.get(name))
