"""The operators of PyTorch by the library, and what eager training has in their place."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ksurgeon.kernels.cpu import run
from ksurgeon.kernels.cpu.pack import compare_all
from ksurgeon.kernels.eager import has_modes
from ksurgeon.kernels.operators import (
    as_rotated,
    chain,
    chain_backward,
    fake_chain,
    gradients,
    one_by_one,
    rotated_chain,
)
from ksurgeon.torch_private import not_compiled

__all__ = ["backward_at_once", "chain", "chain_backward", "chain_inference", "rotated_chain", "train_chain"]


@chain.register_kernel("cpu")
def _chain(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dim: int) -> Tensor:
    return run.forward(x, factors, bias, dim, light=True)


@chain_backward.register_kernel("cpu")
def _chain_backward(
    g: Tensor, x: Tensor, factors: Sequence[Tensor], dim: int, need_x: bool, need_factors: bool
) -> list[Tensor]:
    of_x, of_factors = run.backward(g, x, factors, dim, need_x, need_factors)
    return [
        x.new_empty(0) if of_x is None else of_x,
        *([f.new_empty(0) for f in factors] if of_factors is None else of_factors),
    ]


@rotated_chain.register_kernel("cpu")
def _rotated_chain(
    x: Tensor, angles: Tensor, diagonal: Tensor, sizes: Sequence[int], bias: Tensor | None, dim: int
) -> Tensor:
    factors = as_rotated(angles, diagonal, sizes)
    compare_all(factors)
    return run.forward(x, factors, bias, dim)


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

torch.library.register_fake("ksurgeon::chain_inference", fake_chain, lib=_LIBRARY)
torch.library.register_vmap("ksurgeon::chain_inference", one_by_one(chain_inference), lib=_LIBRARY)


class _Training(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, dim: int, *factors: Tensor) -> Tensor:
        ctx.save_for_backward(x, *factors)
        ctx.dim = dim
        return run.forward(x, factors, bias, dim, light=True)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        need_x, need_bias, _, *needs = ctx.needs_input_grad
        of_x, of_factors, of_bias = gradients(ctx, g, (need_x, *needs), need_bias, backward_at_once)
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
