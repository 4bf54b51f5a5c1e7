"""A chain with a low rank beside it, trained as one: the sum of both and that of the gradients of their input
are made inside matrix products, where they cost nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ksurgeon.kernels import reference
from ksurgeon.kernels.cpu import run
from ksurgeon.kernels.cpu.ops import backward_at_once
from ksurgeon.kernels.eager import is_transformed

__all__ = ["train_beside"]


def train_beside(
    x: Tensor, factors: Sequence[Tensor], down: Tensor, up: Tensor, bias: Tensor | None
) -> Tensor:
    """``chain(x) + up · down · x + bias`` along the last dimension of a contiguous real ``x``.

    ``down`` and ``up`` are factors of one block each, ``(1, 1, rank, in)`` and ``(1, 1, out, rank)``.
    """
    y: Tensor = _Beside.apply(x, bias, down, up, *factors)  # type: ignore[no-untyped-call]
    return y


class _Beside(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, *factors: Tensor
    ) -> Tensor:
        y = run.forward(x, factors, bias, -1, light=True)
        inner = _flat(x) @ down[0, 0].mT
        _flat(y).addmm_(inner, up[0, 0].mT)
        ctx.save_for_backward(x, inner, down, up, *factors)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, inner, down, up, *factors = ctx.saved_tensors
        need_x, need_bias, need_down, need_up, *needs = ctx.needs_input_grad
        of_bias = g.reshape(-1, g.shape[-1]).sum(0) if need_bias else None
        if torch.is_grad_enabled() or is_transformed(g):  # plain operations have a graph, and take batches
            of_x, *rest = reference.gradients_with_graph(_plainly, (x, down, up, *factors), g)
            return of_x, of_bias, *rest
        g = g.contiguous()
        of_inner = _flat(g) @ up[0, 0] if need_x or need_down else None
        of_down = (of_inner.mT @ _flat(x))[None, None] if of_inner is not None and need_down else None
        of_up = (_flat(g).mT @ inner)[None, None] if need_up else None
        of_input: Any = None
        of_factors: list[Any] = [None] * len(factors)
        if need_x or any(needs):
            of_input, *made = backward_at_once(g, x, factors, -1, need_x, any(needs))
            of_factors = made if any(needs) else of_factors
        if need_x and of_inner is not None:
            _flat(of_input).addmm_(of_inner, down[0, 0])
        return of_input if need_x else None, of_bias, of_down, of_up, *of_factors


def _plainly(x: Tensor, down: Tensor, up: Tensor, *factors: Tensor) -> Tensor:
    return reference.apply_chain(x, factors, -1) + reference.apply_chain(x, (down, up), -1)


def _flat(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])
