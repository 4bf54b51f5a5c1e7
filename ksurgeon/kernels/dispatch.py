"""Hands products to the backend of their device. The choice never changes a result beyond rounding."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ksurgeon.errors import ExportError
from ksurgeon.kernels.backend import Backend
from ksurgeon.kernels.chosen import CHOSEN
from ksurgeon.kernels.compiling import constant
from ksurgeon.kernels.registry import REFERENCE, REGISTERED, best_backend, export_backend

__all__ = [
    "apply_chain",
    "at_once",
    "backend_of",
    "beside",
    "few_rows",
    "int8_at_once",
    "is_plain_only",
    "operators_only",
    "reference_only",
]


def apply_chain(
    x: Tensor,
    factors: Sequence[Tensor],
    dim: int = -1,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Multiply the vectors along dimension ``dim`` of ``x`` by a chain of factors, add a bias, activate.

    Args:
        x: floating or complex tensor; its size along ``dim`` is what the first factor takes.
        factors: parameters of shape ``(a, d, b, c)`` in the order they are applied.
        dim: the dimension that is mapped.
        bias: one entry for each output of the chain.
        activation: None, "relu", "relu6", "gelu" (exact), "gelu_tanh", "silu" or "hardswish", applied to
            every entry of the result. Where gradients are wanted it is PyTorch's own function.

    Returns:
        A tensor of the shape of ``x``, its size along ``dim`` what the last factor gives.

    Raises:
        ValueError: there is no activation of that name.

    Example:
        >>> apply_chain(torch.randn(2, 30), [torch.randn(2, 3, 4, 5)]).shape
        torch.Size([2, 24])
    """
    return backend_of(x.device).apply_chain(x, factors, dim, bias, activation)


def backend_of(device: torch.device) -> Backend:
    """The backend that multiplies on a device, chosen at the first product there."""
    if type(device) is not torch.device:  # what a trace has in its place is not kept
        return REGISTERED[_choose(torch.device("cpu"))] if _only is None else _only
    backend = CHOSEN.by_device.get(device)
    if backend is None:
        if _only is not None:
            return _only
        backend = CHOSEN.by_device[device] = REGISTERED[_choose(device)]
    return backend


@constant
def _choose(device: torch.device) -> str:
    """A name: of an object that a function gave a compiler can call no methods."""
    backend = best_backend(device)
    CHOSEN.use_also(backend)
    return backend.name


_only: Backend | None = None


@contextmanager
def reference_only() -> Iterator[None]:
    """Inside, every product is plain PyTorch, as a program that is to run without ksurgeon needs it; int8
    factors are dequantized."""
    with _restricted(REFERENCE):
        yield


@contextmanager
def operators_only() -> Iterator[None]:
    """Inside, products in float32 along the last dimension, or along dimension 1 of more, are operators of
    ksurgeon's own, as a program that is to run by its kernels needs them; others are plain PyTorch.

    Raises:
        ExportError: no backend has such operators.
    """
    backend = export_backend()
    if backend is None:
        raise ExportError("no backend that is installed here has operators for exported programs")
    with _restricted(backend):
        yield


@contextmanager
def _restricted(backend: Backend) -> Iterator[None]:
    global _only
    before, state = _only, CHOSEN.state()
    CHOSEN.clear()
    _only = backend
    try:
        yield
    finally:
        _only = before
        CHOSEN.restore(state)


def is_plain_only() -> bool:
    """Whether products are to be plain PyTorch: inside of ``reference_only``, and in programs that are
    exported outside of ``operators_only``."""
    return torch.compiler.is_exporting() if _only is None else _only is REFERENCE


def at_once(
    x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dim: int, activation: str | None = None
) -> Tensor | None:
    """``apply_chain(x, factors, dim, bias, activation)`` where a backend can have it without looking further,
    else None: a short cut for layers, whose own Python takes as long as a small product. It is not for layers
    that are being compiled."""
    return CHOSEN.at_once(x, factors, bias, dim, activation)


def int8_at_once(
    x: Tensor, tensors: tuple[Tensor, ...], bias: Tensor | None, dim: int, activation: str | None
) -> Tensor | None:
    """``at_once`` for int8 factors, values and scales of all of them in order."""
    return CHOSEN.int8_at_once(x, tensors, bias, dim, activation)


def few_rows(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor | None:
    """``apply_chain(x, factors, -1, bias)`` in plain eager inference of one dtype by compiled kernels, else
    None: for layers that have another way."""
    return backend_of(x.device).few_rows(x, factors, bias)


def beside(
    x: Tensor, factors: Sequence[Tensor], side: Sequence[Tensor], bias: Tensor | None
) -> Tensor | None:
    """``apply_chain(x, factors, -1, bias) + apply_chain(x, side)`` where a backend trains both as one, else
    None."""
    return backend_of(x.device).beside(x, factors, side, bias)
