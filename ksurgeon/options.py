"""Keyword arguments that one function hands on to another."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

__all__ = ["require_names"]


def require_names(function: str, given: Mapping[str, object], known: Iterable[str]) -> None:
    """Return if a function knows all names that it was given.

    Raises:
        TypeError: it does not; the message has the nearest name, or all of them.
    """
    names = sorted(known)
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise TypeError(f"{function} has no keyword argument {name}; {hint}")
