"""How ``KMatrix.from_dense`` fits: ``ksurgeon`` registers the function, which is of a part above this one."""

from collections.abc import Callable
from typing import Any

__all__ = ["fit_", "register_fit"]

_loaders: list[Callable[[], Callable[..., Any]]] = []


def register_fit(load: Callable[[], Callable[..., Any]]) -> None:
    """Let ``load()`` give, when it is first needed, what is called as ``fit_(matrix, weight)``."""
    _loaders[:] = [load]


def fit_(matrix: Any, weight: Any) -> None:
    """Fit a ``KMatrix`` to a dense matrix."""
    _loaders[0]()(matrix, weight)
