"""The structures there are, by the names that rule files have for them; others may add theirs."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar, dataclass_transform

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.structures.base import Structure
from ksurgeon.kmatrix.structures.fields import chain, count, radices, share, size
from ksurgeon.plugins import load_plugins

__all__ = ["ENTRY_POINTS", "register_structure", "registered", "structure_class", "with_names"]

ENTRY_POINTS = "ksurgeon.structures"
"""Entry points of this group are imported before a name is said to be unknown."""

_CLASSES: dict[str, type[Structure]] = {}

_S = TypeVar("_S", bound=Structure)


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(size, count, share, radices, chain)
)
def register_structure(name: str) -> Callable[[type[_S]], type[_S]]:
    """Make a class a structure: a frozen dataclass that rule files, plans and records call by a name.

    Its fields are given by name, and checked against their annotations where these are plain types. A package
    of yours may name the module that does this under the entry point ``ksurgeon.structures``; it is then
    imported when a name is not known, and before the planner looks for structures.

    Raises:
        StructureError: another class has the name, or the class is no ``Structure``.

    Examples:
        >>> @ksurgeon.register_structure("scaled_identity")
        ... class ScaledIdentity(ksurgeon.Structure):
        ...     scale: float = 1.0
    """

    def register(cls: type[_S]) -> type[_S]:
        if not (isinstance(cls, type) and issubclass(cls, Structure)):
            raise StructureError(f"register_structure({name!r}) needs a subclass of Structure, got {cls!r}")
        known = _CLASSES.get(name)
        if known is not None and _place(known) != _place(cls):  # a module that is run again may do so
            raise StructureError(
                f'the structure "{name}" is {".".join(_place(known))} already; choose another name'
            )
        if not name or "+" in name:
            raise StructureError(f'"{name}" cannot be the name of a structure: "+" is for sums')
        made = with_names(dataclass(frozen=True, repr=False, kw_only=True)(cls))
        made.registered_as = name
        _CLASSES[name] = made
        return made

    return register


def with_names(cls: type[_S]) -> type[_S]:
    """The class, whose constructor names what it was given that it does not take."""
    plain = cls.__init__

    @wraps(plain)
    def init(self: Structure, *args: Any, **values: Any) -> None:
        _complain(type(self), args, values)
        plain(self, *args, **values)

    setattr(cls, "__init__", init)  # noqa: B010
    return cls


def registered() -> dict[str, type[Structure]]:
    """All structures by their names, those of installed packages among them."""
    load_plugins(ENTRY_POINTS)
    return dict(_CLASSES)


def structure_class(name: object) -> type[Structure]:
    """The structure of that name.

    Raises:
        StructureError: there is none; the message has the nearest names, and what may be missing.
    """
    failed = load_plugins(ENTRY_POINTS) if name not in _CLASSES else {}
    if isinstance(name, str) and name in _CLASSES:
        return _CLASSES[name]
    near = get_close_matches(str(name), _CLASSES, n=1)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    others = "".join(f"; {entry} failed ({why})" for entry, why in failed.items())
    raise StructureError(
        f'there is no structure "{name}"; {hint}allowed: {", ".join(_CLASSES)}; if a package of somebody '
        f"else's has it, install or import that{others}"
    )


def _place(cls: type[Structure]) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _complain(cls: type[Structure], args: tuple[Any, ...], values: Mapping[str, Any]) -> None:
    declared = cls.__dataclass_fields__  # type: ignore[attr-defined]
    by_position = [name for name, one in declared.items() if not one.kw_only]
    if len(args) > len(by_position):
        raise StructureError(
            f"{cls.__name__} takes {' and '.join(by_position) or 'nothing'} by position, and all else by "
            f"name; got {len(args)} positional values"
        )
    given = by_position[: len(args)]
    if twice := set(given) & values.keys():
        raise StructureError(f"{cls.__name__} got {min(twice)} by position and by name; give it once")
    for name in values:
        if name not in declared:
            near = get_close_matches(name, declared, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(declared) or 'none'}"
            raise StructureError(f"{cls.__name__} has no parameter {name}; {hint}")
    for name, one in declared.items():
        if name not in (*given, *values) and one.default is one.default_factory is MISSING:
            raise StructureError(f"{cls.__name__} needs {name}")
