"""The kernels as operators of PyTorch: for autograd, ``torch.compile`` and dispatch modes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ksurgeon.kernels import reference
from ksurgeon.kernels.cpu import run
from ksurgeon.kernels.cpu.layout import in_rows, lies_in_rows, new_result
from ksurgeon.kernels.cpu.pack import compare_all
from ksurgeon.kernels.eager import has_modes, is_transformed
from ksurgeon.patterns.pattern import Pattern
from ksurgeon.patterns.rotated import Rotated
from ksurgeon.torch_private import not_compiled, pytree

__all__ = [
    "as_rotated",
    "backward_at_once",
    "chain",
    "chain_backward",
    "chain_inference",
    "rotated_chain",
    "train_chain",
]


@torch.library.custom_op("ksurgeon::chain", mutates_args=(), device_types="cpu")
def chain(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dim: int) -> Tensor:
    """``reference.apply_chain(x, factors, dim)`` plus a bias along ``dim``."""
    return run.forward(x, factors, bias, dim, light=True)


@torch.library.custom_op("ksurgeon::chain_backward", mutates_args=(), device_types="cpu")
def chain_backward(
    g: Tensor, x: Tensor, factors: Sequence[Tensor], dim: int, need_x: bool, need_factors: bool
) -> list[Tensor]:
    """Gradients of the input and of every factor; empty tensors where they are not needed."""
    of_x, of_factors = run.backward(g, x, factors, dim, need_x, need_factors)
    return [
        x.new_empty(0) if of_x is None else of_x,
        *([f.new_empty(0) for f in factors] if of_factors is None else of_factors),
    ]


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


# Defined by hand: ``custom_op`` takes several microseconds more for a call, as long as a small product.
_LIBRARY = torch.library.Library("ksurgeon", "FRAGMENT")
_LIBRARY.define(
    "chain_inference(Tensor x, Tensor[] factors, Tensor? bias, int dim, str? activation=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
)


@not_compiled  # type: ignore[untyped-decorator]
def _chain_inference(
    x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dim: int, activation: str | None = None
) -> Tensor:
    factors = tuple(factors)
    if torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in (x, bias, *factors)]):
        raise RuntimeError("ksurgeon::chain_inference has no gradients; ksurgeon::chain has, or use no_grad")
    compare_all(factors)
    return run.forward(x, factors, bias, dim, activation)


_LIBRARY.impl("chain_inference", _chain_inference, "CPU")
chain_inference = torch.ops.ksurgeon.chain_inference.default
"""``chain`` and an activation where no gradients are wanted, with merged factors kept: ``run.forward``."""


def _fake_chain(
    x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dim: int, activation: str | None = None
) -> Tensor:
    axis, last = dim % x.dim(), factors[-1]
    return new_result(x, axis, last.shape[0] * last.shape[1] * last.shape[2], lies_in_rows(x, axis))


chain.register_fake(_fake_chain)
torch.library.register_fake("ksurgeon::chain_inference", _fake_chain, lib=_LIBRARY)


@torch.library.custom_op("ksurgeon::rotated_chain", mutates_args=(), device_types="cpu")
def rotated_chain(
    x: Tensor, angles: Tensor, diagonal: Tensor, sizes: Sequence[int], bias: Tensor | None, dim: int
) -> Tensor:
    """``chain`` for inference with the factors of ``Rotated``, whose patterns are in ``sizes``."""
    factors = as_rotated(angles, diagonal, sizes)
    compare_all(factors)
    return run.forward(x, factors, bias, dim)


def as_rotated(angles: Tensor, diagonal: Tensor, sizes: Sequence[int]) -> Rotated:
    """What an operator takes as plain arguments."""
    patterns = tuple(Pattern(*sizes[start : start + 4]) for start in range(0, len(sizes), 4))
    return Rotated((angles, diagonal), patterns)


@rotated_chain.register_fake
def _(
    x: Tensor, angles: Tensor, diagonal: Tensor, sizes: Sequence[int], bias: Tensor | None, dim: int
) -> Tensor:
    axis = dim % x.dim()
    return new_result(x, axis, x.shape[axis], lies_in_rows(x, axis))


def _one_by_one(operator: Callable[..., Any]) -> Callable[..., Any]:
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


chain.register_vmap(_one_by_one(chain))
chain_backward.register_vmap(_one_by_one(chain_backward))
rotated_chain.register_vmap(_one_by_one(rotated_chain))
torch.library.register_vmap("ksurgeon::chain_inference", _one_by_one(chain_inference), lib=_LIBRARY)


def _setup_context(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[Tensor, Sequence[Tensor], Tensor | None, int],
    output: Tensor,
) -> None:
    x, factors, _, dim = inputs
    ctx.save_for_backward(x, *factors)
    ctx.dim = dim  # type: ignore[attr-defined]


_Gradients = tuple[Tensor | None, Sequence[Tensor | None], Tensor | None]


def _gradients(
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
    of_x, of_factors, of_bias = _gradients(ctx, g, (need_x, *each), bool(need_bias), chain_backward)
    return of_x, list(of_factors), of_bias, None


chain.register_autograd(_backward, setup_context=_setup_context)


class _Training(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, dim: int, *factors: Tensor) -> Tensor:
        ctx.save_for_backward(x, *factors)
        ctx.dim = dim
        return run.forward(x, factors, bias, dim, light=True)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        need_x, need_bias, _, *needs = ctx.needs_input_grad
        of_x, of_factors, of_bias = _gradients(ctx, g, (need_x, *needs), need_bias, backward_at_once)
        return of_x, of_bias, None, *of_factors


def backward_at_once(g: Tensor, x: Tensor, factors: Sequence[Tensor], *rest: Any) -> list[Any]:
    """``chain_backward`` without the dispatcher, but where a dispatch mode is to see it."""
    if has_modes():
        return chain_backward(g, x, factors, *rest)
    of_x, of_factors = run.backward(g, x, factors, *rest)
    return [of_x, *(of_factors or ())]


def train_chain(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dim: int) -> Tensor:
    """``chain`` for eager training, where the operator's way through the dispatcher would take longer than
    a small product."""
    y: Tensor = _Training.apply(x, bias, dim, *factors)  # type: ignore[no-untyped-call]
    return y
