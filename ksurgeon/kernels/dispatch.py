"""Chooses the backend. The choice never changes a result beyond rounding."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from ksurgeon.errors import KsurgeonError
from ksurgeon.kernels import cpu, cuda, reference
from ksurgeon.kernels.compiling import constant

__all__ = [
    "apply_chain",
    "at_once",
    "available_backends",
    "beside",
    "chosen_backend",
    "few_rows",
    "is_plain_only",
    "operators_only",
    "reference_only",
]

Backend = Callable[[Tensor, Sequence[Tensor], int, Tensor | None, str | None], Tensor]


_BACKENDS: dict[str, Backend] = {"reference": reference.apply_chain}
if cpu.is_available():
    _BACKENDS["cpu"] = cpu.apply_chain


def available_backends() -> tuple[str, ...]:
    """Names of the backends that this installation has."""
    return (*_BACKENDS, "cuda") if cuda.is_available() else tuple(_BACKENDS)


_chosen: Backend | None = None
_chosen_on_gpu: Backend | None = None


@constant
def chosen_backend(device: torch.device | None = None) -> str:
    """Name of the backend for tensors on ``device``: ``KSURGEON_BACKEND``, or the best.

    The variable counts as it is at the first product. What a backend cannot do is left to the reference.

    Raises:
        KsurgeonError: the variable names a backend that this installation does not have, or the library or
            instruction set that ``KSURGEON_CPU_LIBRARY`` or ``KSURGEON_CPU_ISA`` names cannot be had.
    """
    for name in ("KSURGEON_CPU_LIBRARY", "KSURGEON_CPU_ISA"):
        if os.environ.get(name) and cpu.why_missing():
            raise KsurgeonError(f"{name}={os.environ[name]!r}: {cpu.why_missing()}; unset the variable")
    asked = os.environ.get("KSURGEON_BACKEND", "auto")
    if asked == "auto":
        if device is not None and device.type == "cuda":
            return "reference" if cuda.why_not(cuda.index_of(device)) else "cuda"
        return next(reversed(_BACKENDS))
    if asked not in _BACKENDS and asked not in available_backends():
        raise KsurgeonError(
            f"KSURGEON_BACKEND={asked!r}: this installation has {', '.join(available_backends())}; "
            "unset the variable or name one of these"
        )
    return asked


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
    """
    global _chosen_on_gpu
    if x.is_cuda:
        if _chosen_on_gpu is None:
            asked = os.environ.get("KSURGEON_BACKEND", "auto")
            chosen_backend(x.device)  # whether the variable makes sense
            # The kernels' own entry says why, where they do not run on a device.
            _chosen_on_gpu = cuda.apply_chain if asked in ("auto", "cuda") else _BACKENDS[asked]
        return _chosen_on_gpu(x, factors, dim, bias, activation)
    return (_chosen or _choose())(x, factors, dim, bias, activation)


def _choose() -> Backend:
    """The backend off a GPU; once, as reading the environment takes as long as a small product."""
    global _chosen
    name = chosen_backend()
    _chosen = cuda.apply_chain if name == "cuda" else _BACKENDS[name]
    return _chosen


_only: Literal["plain", "operators"] | None = None


@contextmanager
def reference_only() -> Iterator[None]:
    """Inside, every product is plain PyTorch, as a program that is to run without ksurgeon needs it; int8
    factors are dequantized."""
    with _restricted("plain", reference.apply_chain):
        yield


@contextmanager
def operators_only() -> Iterator[None]:
    """Inside, products in float32 along the last dimension, or along dimension 1 of more, are operators of
    ksurgeon's own, as a program that is to run by its kernels needs them; others are plain PyTorch."""
    with _restricted("operators", _by_operator):
        yield


@contextmanager
def _restricted(only: Literal["plain", "operators"], backend: Backend) -> Iterator[None]:
    global _chosen, _chosen_on_gpu, _only
    before = _chosen, _chosen_on_gpu, _only
    _chosen, _chosen_on_gpu, _only = backend, backend, only
    try:
        yield
    finally:
        _chosen, _chosen_on_gpu, _only = before


def _by_operator(
    x: Tensor, factors: Sequence[Tensor], dim: int, bias: Tensor | None, activation: str | None
) -> Tensor:
    axis = dim % x.dim()
    if axis not in (1, x.dim() - 1) or x.dtype is not torch.float32:
        return reference.apply_chain(x, factors, dim, bias, activation)
    axis = 1 if axis < x.dim() - 1 else -1
    y: Tensor = cpu.chain_inference(x, list(factors), bias, axis, activation)
    return y


def is_plain_only() -> bool:
    """Whether products are to be plain PyTorch: inside of ``reference_only``, and in programs that are
    exported outside of ``operators_only``."""
    return _only == "plain" or (_only is None and torch.compiler.is_exporting())


def at_once(
    x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dim: int, activation: str | None = None
) -> Tensor | None:
    """``apply_chain(x, factors, dim, bias, activation)`` where a backend can have it without looking further,
    else None: a short cut for layers, whose own Python takes as long as a small product. It is not for layers
    that are being compiled."""
    return cpu.at_once(x, factors, bias, dim, activation) if _chosen is cpu.apply_chain else None


def few_rows(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor | None:
    """``apply_chain(x, factors, -1, bias)`` in plain eager inference of one dtype on a CPU with compiled
    kernels, else None: for layers that have another way."""
    return cpu.few_rows(x, factors, bias) if (_chosen or _choose()) is cpu.apply_chain else None


def beside(
    x: Tensor, factors: Sequence[Tensor], side: Sequence[Tensor], bias: Tensor | None
) -> Tensor | None:
    """``apply_chain(x, factors, -1, bias) + apply_chain(x, side)`` where a backend trains both as one, else
    None."""
    return cpu.beside(x, factors, side, bias) if (_chosen or _choose()) is cpu.apply_chain else None
