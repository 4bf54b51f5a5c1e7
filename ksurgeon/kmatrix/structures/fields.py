"""Fields of structures, and what each may hold."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, field
from functools import partial
from operator import index
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ksurgeon.patterns.pattern import Pattern

__all__ = ["LARGEST_SIZE", "chain", "count", "hints_of", "problems", "radices", "share", "size", "value_of"]

LARGEST_SIZE = 2**31
"""Of one dimension; what is larger comes from a damaged file."""

_PLAIN = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "true or false",
    NoneType: "nothing",
}

Check = Callable[[Any], Any]


def size(*, default: Any = MISSING, kw_only: bool = True, least: int = 1, most: int = LARGEST_SIZE) -> Any:
    """A field for an integer from ``least`` to ``most``; None may stand in it where it is the default."""
    return _checked(partial(_whole, least, most), default, kw_only)


def count(*, default: Any = MISSING, kw_only: bool = True) -> Any:
    """A field for an integer from 1 to 64."""
    return size(default=default, kw_only=kw_only, most=64)


def share(*, default: Any = MISSING, kw_only: bool = True) -> Any:
    """A field for a fraction above 0, at most 1."""
    return _checked(_fraction, default, kw_only)


def radices(*, default: Any = MISSING, kw_only: bool = True) -> Any:
    """A field for "auto", one radix, or a list of them."""
    return _checked(_radix, default, kw_only)


def chain(*, kw_only: bool = False) -> Any:
    """A field for the patterns of a chain."""
    return _checked(_patterns, MISSING, kw_only)


def _checked(check: Check, default: Any, kw_only: bool) -> Any:
    return field(default=default, kw_only=kw_only, metadata={"check": check})


def _whole(least: int, most: int, value: Any) -> int:
    value = _integer(value)
    if value < least:
        raise ValueError(f"should be greater than or equal to {least}")
    if value > most:
        raise ValueError(f"should be less than or equal to {most}")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        if not isinstance(value, bool):
            return index(value)
    except TypeError:
        pass
    raise ValueError("should be an integer")


def _listed(value: Any) -> Any:
    """Arrays and tensors as lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def _fraction(value: Any) -> float:
    value = _listed(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 1:
        raise ValueError("should be a number above 0, and 1 at most")
    return float(value)


def _radix(value: Any) -> Any:
    value = _listed(value)
    if isinstance(value, str) and value == "auto":
        return value
    if isinstance(value, (list, tuple)) and 1 <= len(value) <= 64:
        return tuple(_whole(1, LARGEST_SIZE, entry) for entry in value)
    with suppress(ValueError):
        if 2 <= (number := _integer(value)) <= LARGEST_SIZE:
            return number
    raise ValueError('should be "auto", an integer of at least 2, or a list of them')


def _patterns(value: Any) -> tuple[Pattern, ...]:
    value = _listed(value)
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= 4096:
        raise ValueError("should be a list of at least one and at most 4096 patterns (a, b, c, d)")
    for pattern in value:
        if not isinstance(pattern, (list, tuple)) or len(pattern) != 4:
            raise ValueError(f"a pattern is four integers (a, b, c, d), got {pattern!r}")
    return tuple(Pattern(*(_whole(1, LARGEST_SIZE, entry) for entry in pattern)) for pattern in value)


def value_of(declared: Field[Any], hint: Any, given: Any) -> Any:
    """What a field holds for a value that was given; without a check of its own, one of its plain types.

    Raises:
        ValueError: it cannot hold it.
    """
    check: Check | None = declared.metadata.get("check")
    if check is not None:
        return given if given is None and declared.default is None else check(given)
    given = tuple(given) if isinstance(given, list) else given
    return given if hint is None else _as_hinted(hint, given)


def _as_hinted(hint: Any, given: Any) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    allowed = []
    for option in options:
        if get_origin(option) is Literal:
            if given in get_args(option):
                return given
            allowed += [f'"{value}"' if isinstance(value, str) else str(value) for value in get_args(option)]
        elif option not in _PLAIN or (
            isinstance(given, option) and not (isinstance(given, bool) and option is not bool)
        ):  # for the structure itself to check
            return given
        elif option is float and isinstance(given, int) and not isinstance(given, bool):
            return float(given)
        else:
            allowed.append(_PLAIN[option])
    raise ValueError(f"should be {' or '.join(name for name in allowed if name != 'nothing')}")


def hints_of(cls: type) -> dict[str, Any]:
    """The annotations of a class; none where they name what its module does not have."""
    try:
        return get_type_hints(cls)
    except NameError:
        return {}


def problems(cls: Any, values: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """All that is wrong with values for a structure: "unknown", "missing" or "value", its name, and why."""
    declared: dict[str, Field[Any]] = cls.__dataclass_fields__
    hints = hints_of(cls)
    found = [("unknown", name, f"there is no {name}") for name in values if name not in declared]
    for name, one in declared.items():
        if name in values:
            try:
                value_of(one, hints.get(name), values[name])
            except ValueError as error:
                found.append(("value", name, str(error)))
        elif one.default is MISSING and one.default_factory is MISSING:
            found.append(("missing", name, f"{name} is missing"))
    return found
