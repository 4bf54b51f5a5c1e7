"""Functions that stand in traced forwards: what was decided while tracing must come out the same."""

from typing import Any

from torch import Tensor

__all__ = ["known_object", "require", "require_all", "require_length", "require_names"]


def require(actual: Any, expected: Any) -> None:
    """Guard in a traced forward: a condition that was decided while tracing must come out the same.

    Raises:
        RuntimeError: it came out differently.
    """
    if actual != expected:
        raise RuntimeError(
            f"this module's forward was rewritten by ksurgeon for inputs where a condition on their shape "
            f"was {expected!r}, and it is now {actual!r}; revert the module, or convert the model with such "
            "inputs"
        )


def require_length(value: Any, expected: int) -> None:
    """``require`` of a length."""
    require(len(value), expected)


def require_names(value: dict[str, Any], *expected: str) -> None:
    """``require`` of the keys of a dictionary, in any order."""
    require(sorted(value), sorted(expected))


def require_all(condition: Tensor) -> None:
    """Guard in a traced forward: every entry must be true.

    Raises:
        RuntimeError: one is not.
    """
    if not bool(condition.all()):
        raise RuntimeError("a check in this module's forward, which ksurgeon rewrote, does not hold")


def known_object(name: str) -> Any:
    """Stands for an object that no graph can hold.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(f"{name} is known while a forward is traced only")
