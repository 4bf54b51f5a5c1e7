"""The reference backend: plain PyTorch, runs everywhere, defines the truth."""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from ksurgeon.kernels.activation import activate
from ksurgeon.kernels.eager import is_eager
from ksurgeon.kernels.permutation import permutation_of
from ksurgeon.patterns.rotated import Rotated

__all__ = ["apply_chain", "apply_factor", "gradients_with_graph"]


def apply_factor(columns: Tensor, factor: Tensor) -> Tensor:
    """Apply one factor ``(a, d, b, c)`` to the columns of a matrix ``(a·c·d, m)``; gives ``(a·b·d, m)``.

    Vectors as columns keep every operand of the batched product contiguous in its last dimension. Entries
    are copied only where both the stride and the number of blocks are above 1; which case it is depends
    on the factor alone, so that exported programs need no guard on the number of vectors.
    """
    (a, d, b, c), vectors = factor.shape, columns.shape[1]
    blocks = columns.view(a, c, d, vectors)
    if d == 1:
        inputs = blocks.squeeze(2)
    elif a == 1:
        inputs = blocks.squeeze(0).transpose(0, 1)
    else:
        inputs = _swapped(blocks).view(a * d, c, vectors)
    outputs = torch.bmm(factor.reshape(a * d, b, c), inputs)
    if d > 1 and b > 1:
        outputs = _swapped(outputs.view(a, d, b, vectors))
    return outputs.view(a * b * d, vectors)


def apply_chain(
    x: Tensor,
    factors: Sequence[Tensor],
    dim: int,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Apply ``factors`` in order to the vectors along dimension ``dim`` of ``x``, add the bias, activate.

    On the CPU, where no gradient is wanted, factors that are permutations move the entries: as a product,
    one infinite entry would become NaN everywhere.
    """
    if type(factors) is Rotated:
        factors = tuple(factors)
    index = permutation_of(factors) if is_eager(x, factors) else None
    if index is not None:
        y = x.index_select(dim, index)
        if bias is not None:
            y = y + bias.to(y.dtype).view(-1, *[1] * (x.dim() - 1 - dim % x.dim()))
        return activate(y, activation)
    moved = x.movedim(dim, 0)
    columns = moved.reshape(moved.shape[0], prod(moved.shape[1:]))
    for factor in factors:
        columns = apply_factor(columns, factor)
    if bias is not None:
        columns = columns + bias.to(columns.dtype)[:, None]
    return activate(columns, activation).view(columns.shape[0], *moved.shape[1:]).movedim(0, dim)


def gradients_with_graph(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], g: Tensor
) -> list[Tensor | None]:
    """Gradients of ``function(*tensors)`` for those that require one, themselves differentiable.

    They are of the function alone: a tensor may have been computed from another one of them.
    """
    with torch.enable_grad():
        own = [tensor.view_as(tensor) for tensor in tensors]
        y = function(*own)
    wanted = [tensor for tensor in own if tensor.requires_grad]
    made = iter(torch.autograd.grad(y, wanted, g, create_graph=True)) if wanted else iter(())
    return [next(made) if tensor.requires_grad else None for tensor in own]


def _swapped(blocks: Tensor) -> Tensor:
    """A contiguous copy with the two middle dimensions exchanged."""
    return blocks.transpose(1, 2).clone(memory_format=torch.contiguous_format)
