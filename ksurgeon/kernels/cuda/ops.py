"""The operators of PyTorch on CUDA tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ksurgeon.kernels.operators import as_rotated, chain, chain_backward, rotated_chain

__all__ = ["DTYPES", "chain", "chain_backward", "rotated_chain"]

DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.complex64})


@chain.register_kernel("cuda")
def _chain(x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dim: int) -> Tensor:
    from ksurgeon.kernels.cuda import choice, pack, run

    # The products of factors in training are made anew: sharded modules and replayed CUDA graphs change
    # factors without giving them a new version.
    keep = not any([factor.requires_grad for factor in factors])
    if not keep:
        pack.forget(factors)
    way = choice.way_of("forward", x, factors, dim)
    # What a chain at once takes is not worth making for one product.
    way = "steps" if way == "whole" and not keep else way
    return run.forward(x, factors, bias, dim, way=way, keep=keep)


@rotated_chain.register_kernel("cuda")
def _rotated_chain(
    x: Tensor, angles: Tensor, diagonal: Tensor, sizes: Sequence[int], bias: Tensor | None, dim: int
) -> Tensor:
    from ksurgeon.kernels.cuda import choice, run

    factors = as_rotated(angles, diagonal, sizes)
    return run.forward(x, factors, bias, dim, way=choice.way_of("forward", x, factors, dim))


@chain_backward.register_kernel("cuda")
def _chain_backward(
    g: Tensor, x: Tensor, factors: Sequence[Tensor], dim: int, need_x: bool, need_factors: bool
) -> list[Tensor]:
    from ksurgeon.kernels.cuda import choice, run

    way = choice.way_of("backward", x, factors, dim)
    of_x, of_factors = run.backward(g, x, factors, dim, need_x, need_factors, way=way)
    return [
        x.new_empty(0) if of_x is None else of_x,
        *([f.new_empty(0) for f in factors] if of_factors is None else of_factors),
    ]
