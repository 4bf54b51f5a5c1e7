"""A parameter that a module computes: its forward reads it as before, and a K-module makes it."""

from typing import Any

from torch import Tensor, nn

from ksurgeon.kmatrix.lazy import HasComputed
from ksurgeon.surgery.rewrite import Code, base_class, subclass

__all__ = ["child_of", "class_below", "computed_class", "computed_names"]


def computed_class(base: type[nn.Module], name: str) -> type[nn.Module]:
    """A subclass whose attribute ``name`` is the weight of the child that ``child_of(name)`` names."""
    child = child_of(name)

    def computed(self: nn.Module) -> Tensor:
        weight: Tensor = self._modules[child].weight  # type: ignore[union-attr, assignment]
        return weight

    space: dict[str, Any] = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "__reduce_ex__": _reduce,
        "_ksurgeon_below": base,
        "_ksurgeon_computed": name,
        "_computed": (name, *(base._computed if issubclass(base, HasComputed) else ())),
        name: property(computed),
    }
    bases = (base,) if issubclass(base, HasComputed) else (HasComputed, base)
    new = type(base.__name__, bases, space)
    new.__qualname__ = base.__qualname__
    return new


def child_of(name: str) -> str:
    """Name of the child that makes the parameter ``name``."""
    return f"k_{name}"


def computed_names(module: nn.Module) -> tuple[str, ...]:
    """Parameters that the module computes, the last one made so first."""
    cls, names = type(module), []
    while "_ksurgeon_computed" in vars(cls):
        names.append(cls._ksurgeon_computed)  # type: ignore[attr-defined]
        cls = cls._ksurgeon_below  # type: ignore[attr-defined]
    return tuple(names)


def class_below(cls: type[nn.Module]) -> type[nn.Module]:
    """The class without computed parameters."""
    while "_ksurgeon_computed" in vars(cls):
        cls = cls._ksurgeon_below  # type: ignore[attr-defined]
    return cls


def _reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    cls = class_below(type(self))
    codes = getattr(cls, "_ksurgeon_codes", None)
    return _restore, (base_class(self), codes, computed_names(self)[::-1]), vars(self).copy()


def _restore(
    base: type[nn.Module], codes: tuple[Code, Code | None] | None, names: tuple[str, ...]
) -> nn.Module:
    cls = base if codes is None else subclass(base, *codes)
    for name in names:
        cls = computed_class(cls, name)
    return cls.__new__(cls)
