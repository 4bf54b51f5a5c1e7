"""What products of K-matrices cost, for ``torch.utils.flop_counter`` and what builds on it."""

from collections.abc import Sequence
from math import prod

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

import ksurgeon.kernels  # noqa: F401  its backends define the operators

__all__ = ["register_with_flop_counter"]

_Shape = Sequence[int]


def register_with_flop_counter() -> None:
    """Let ``FlopCounterMode`` count K-matrices as it counts PyTorch's own products: two for a multiplication
    and its addition, and nothing for what a kernel computes a second time."""
    if torch.ops.ksurgeon.chain not in flop_registry:
        register_flop_formula([torch.ops.ksurgeon.chain, torch.ops.ksurgeon.chain_inference])(_of_chain)
        register_flop_formula(torch.ops.ksurgeon.rotated_chain)(_of_rotated_chain)
        register_flop_formula(torch.ops.ksurgeon.chain_backward)(_of_gradients)
        register_flop_formula(torch.ops.ksurgeon.int8_chain)(_of_int8_chain)


def _of_chain(
    x: _Shape, factors: Sequence[_Shape], bias: object, dim: int, activation: object = None, **_: object
) -> int:
    return 2 * _vectors(x, dim) * sum(map(prod, factors))


def _of_rotated_chain(
    x: _Shape, angles: _Shape, diagonal: _Shape, sizes: Sequence[int], bias: object, dim: int, **_: object
) -> int:
    return 2 * _vectors(x, dim) * sum(prod(sizes[start : start + 4]) for start in range(0, len(sizes), 4))


def _of_gradients(
    g: _Shape, x: _Shape, factors: Sequence[_Shape], dim: int, need_x: bool, need_factors: bool, **_: object
) -> int:
    numbers = list(map(prod, factors))
    passed = sum(numbers) if need_x else sum(numbers[1:])  # what takes the gradient back to the input
    return 2 * _vectors(x, dim) * (passed + (sum(numbers) if need_factors else 0))


def _of_int8_chain(
    x: _Shape,
    first: Sequence[_Shape],
    second: Sequence[_Shape],
    bias: object,
    activation: object = None,
    dim: int = -1,
    **_: object,
) -> int:
    return 2 * _vectors(x, dim) * sum(map(prod, (*first[::2], *second[::2])))


def _vectors(x: _Shape, dim: int) -> int:
    return prod(x) // x[dim]
