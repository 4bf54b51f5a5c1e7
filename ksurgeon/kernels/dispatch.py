"""Chooses the backend. The choice never changes a result beyond rounding."""

import os
from collections.abc import Callable, Sequence

from torch import Tensor

from ksurgeon.errors import KsurgeonError
from ksurgeon.kernels import cpu, reference

__all__ = ["apply_chain", "available_backends", "chosen_backend"]

Backend = Callable[[Tensor, Sequence[Tensor], int, Tensor | None], Tensor]

_BACKENDS: dict[str, Backend] = {"reference": reference.apply_chain}
if cpu.is_available():
    _BACKENDS["cpu"] = cpu.apply_chain


def available_backends() -> tuple[str, ...]:
    """Names of the backends that this installation has."""
    return tuple(_BACKENDS)


_chosen: Backend | None = None


def chosen_backend() -> str:
    """Name of the backend in use: ``KSURGEON_BACKEND`` as it is at the first product, or the best there is.

    Raises:
        KsurgeonError: the variable names a backend that this installation does not have.
    """
    asked = os.environ.get("KSURGEON_BACKEND", "auto")
    if asked == "auto":
        return next(reversed(_BACKENDS))
    if asked not in _BACKENDS:
        raise KsurgeonError(
            f"KSURGEON_BACKEND={asked!r}: this installation has {', '.join(_BACKENDS)}; "
            "unset the variable or name one of these"
        )
    return asked


def apply_chain(x: Tensor, factors: Sequence[Tensor], dim: int = -1, bias: Tensor | None = None) -> Tensor:
    """Multiply the vectors along dimension ``dim`` of ``x`` by a chain of factors, and add a bias to them.

    Args:
        x: floating or complex tensor; its size along ``dim`` is what the first factor takes.
        factors: parameters of shape ``(a, d, b, c)`` in the order they are applied.
        dim: the dimension that is mapped.
        bias: one entry for each output of the chain.

    Returns:
        A tensor of the shape of ``x``, its size along ``dim`` what the last factor gives.
    """
    global _chosen
    if _chosen is None:  # once: reading the environment takes as long as a small product
        _chosen = _BACKENDS[chosen_backend()]
    return _chosen(x, factors, dim, bias)
