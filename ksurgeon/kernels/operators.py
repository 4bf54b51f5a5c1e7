"""The operators of PyTorch that backends implement: for autograd, ``torch.compile`` and dispatch modes.

Shapes, derivatives and batching rules are here; a backend registers what runs on its kind of device, as
``chain.register_kernel("cpu")`` does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ksurgeon.kernels import reference
from ksurgeon.kernels.eager import is_transformed
from ksurgeon.kernels.layout import in_rows, lies_in_rows, new_result
from ksurgeon.patterns.pattern import Pattern
from ksurgeon.patterns.rotated import Rotated
from ksurgeon.torch_private import pytree

__all__ = ["as_rotated", "chain", "chain_backward", "fake_chain", "gradients", "one_by_one", "rotated_chain"]


@torch.library.custom_op("ksurgeon::chain", mutates_args=(), device_types=())
def chain(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dim: int) -> Tensor:
    """``reference.apply_chain(x, factors, dim)`` plus a bias along ``dim``."""
    raise NotImplementedError


@torch.library.custom_op("ksurgeon::chain_backward", mutates_args=(), device_types=())
def chain_backward(
    g: Tensor, x: Tensor, factors: Sequence[Tensor], dim: int, need_x: bool, need_factors: bool
) -> list[Tensor]:
    """Gradients of the input and of every factor; empty tensors where they are not needed."""
    raise NotImplementedError


@torch.library.custom_op("ksurgeon::rotated_chain", mutates_args=(), device_types=())
def rotated_chain(
    x: Tensor, angles: Tensor, diagonal: Tensor, sizes: Sequence[int], bias: Tensor | None, dim: int
) -> Tensor:
    """``chain`` for inference with the factors of ``Rotated``, whose patterns are in ``sizes``."""
    raise NotImplementedError


def as_rotated(angles: Tensor, diagonal: Tensor, sizes: Sequence[int]) -> Rotated:
    """What an operator takes as plain arguments."""
    patterns = tuple(Pattern(*sizes[start : start + 4]) for start in range(0, len(sizes), 4))
    return Rotated((angles, diagonal), patterns)


def fake_chain(
    x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dim: int, activation: str | None = None
) -> Tensor:
    """A result of the shape and strides that the kernels give, of fake tensors."""
    axis, last = dim % x.dim(), factors[-1]
    return new_result(x, axis, last.shape[0] * last.shape[1] * last.shape[2], lies_in_rows(x, axis))


chain.register_fake(fake_chain)


@chain_backward.register_fake
def _(
    g: Tensor, x: Tensor, factors: Sequence[Tensor], dim: int, need_x: bool, need_factors: bool
) -> list[Tensor]:
    axis = dim % x.dim()
    rows = in_rows(x, axis)
    return [
        new_result(x, axis, x.shape[axis], rows) if need_x else x.new_empty(0),
        *(f.new_empty(f.shape if need_factors else (0,)) for f in factors),
    ]


@rotated_chain.register_fake
def _(
    x: Tensor, angles: Tensor, diagonal: Tensor, sizes: Sequence[int], bias: Tensor | None, dim: int
) -> Tensor:
    axis = dim % x.dim()
    return new_result(x, axis, x.shape[axis], lies_in_rows(x, axis))


def one_by_one(operator: Callable[..., Any]) -> Callable[..., Any]:
    """A batching rule for ``torch.vmap`` over graphs that have the operator in them."""

    def rule(info: Any, in_dims: Any, *inputs: Any) -> Any:
        def one(k: int) -> Any:
            return operator(
                *pytree.tree_map(lambda x, dim: x if dim is None else x.select(dim, k), inputs, in_dims)
            )

        results = [one(k) for k in range(info.batch_size)]
        stacked = pytree.tree_map(lambda *each: torch.stack(each), *results)
        return stacked, pytree.tree_map(lambda _: 0, stacked)

    return rule


for _operator in (chain, chain_backward, rotated_chain):
    _operator.register_vmap(one_by_one(_operator))


def _setup_context(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[Tensor, Sequence[Tensor], Tensor | None, int],
    output: Tensor,
) -> None:
    x, factors, _, dim = inputs
    ctx.save_for_backward(x, *factors)
    ctx.dim = dim  # type: ignore[attr-defined]


_Gradients = tuple[Tensor | None, Sequence[Tensor | None], Tensor | None]


def gradients(
    ctx: Any, g: Tensor, needs: Sequence[bool], need_bias: bool, backward: Callable[..., list[Tensor]]
) -> _Gradients:
    """Of the input, the factors and the bias; ``needs`` says so of the input and of every factor."""
    x, *factors = ctx.saved_tensors
    dim, axis = ctx.dim, ctx.dim % x.dim()
    need_factors = any(needs[1:])
    of_bias = g.movedim(axis, -1).reshape(-1, g.shape[axis]).sum(0) if need_bias else None
    if not any(needs):
        return None, [None] * len(factors), of_bias
    if torch.is_grad_enabled() or is_transformed(g):  # plain operations have a graph, and take batches
        of_x, *rest = reference.gradients_with_graph(
            lambda x, *factors: reference.apply_chain(x, factors, dim), (x, *factors), g
        )
        return of_x, rest, of_bias
    of_x, *of_factors = backward(g, x, factors, dim, needs[0], need_factors)
    none: list[None] = [None] * len(factors)
    return of_x if needs[0] else None, of_factors if need_factors else none, of_bias


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, list[Tensor | None], Tensor | None, None]:
    need_x, each, need_bias, _ = ctx.needs_input_grad
    of_x, of_factors, of_bias = gradients(ctx, g, (need_x, *each), bool(need_bias), chain_backward)
    return of_x, list(of_factors), of_bias, None


chain.register_autograd(_backward, setup_context=_setup_context)
