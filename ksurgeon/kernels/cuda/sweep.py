"""Step after step through a chain, forwards and backwards."""

from collections.abc import Sequence

from torch import Tensor

from ksurgeon.kernels.cuda.launch import device_of, gradient_of_weight, step
from ksurgeon.kernels.cuda.layout import EVEN, Vectors, scratch
from ksurgeon.patterns.pattern import Pattern

__all__ = ["backward_steps", "forward_steps"]


def _slices(rows: int, steps: int, bytes_each: int, cache: int) -> list[tuple[int, int]]:
    """First row and number of rows of slices whose intermediate results stay in the cache."""
    if steps == 1:
        return [(0, rows)]
    fitting = max(cache // 2 // bytes_each // EVEN, 1) * EVEN
    count = max((rows + fitting // 2) // fitting, 1)
    each = -(-rows // (count * EVEN)) * EVEN
    return [(first, min(each, rows - first)) for first in range(0, rows, each)]


def forward_steps(
    x: Vectors,
    weights: Sequence[Tensor],
    y: Vectors,
    rows: int,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> None:
    """Apply contiguous ``weights`` one after the other; what lies between stays in the device's cache."""
    between = [Pattern.of(weight.shape).out_features for weight in weights[:-1]]
    in_rows, like = y.stride == 1, x.tensor
    slices = _slices(rows, len(weights), max(between, default=1) * like.element_size(), device_of(like).cache)
    room = [scratch(like, slices[0][1], max(between), in_rows).tensor for _ in between[:2]]
    for first, count in slices:
        source = x.from_row(x.first + first)
        for position, weight in enumerate(weights):
            last = position == len(weights) - 1
            if last:
                target = y.from_row(y.first + first)
            else:
                target = scratch(like, count, between[position], in_rows, room[position % 2])
            end = (bias, activation) if last else (None, None)
            step(source, weight, target, count, *end, backwards=position % 2 == 1)
            source = target


def backward_steps(
    g: Vectors,
    x: Vectors,
    weights: Sequence[Tensor],
    of_x: Vectors | None,
    rows: int,
    need_weights: bool,
) -> list[Tensor]:
    """Gradients of contiguous ``weights``, not rounded, if they are needed; of ``x`` in ``of_x``."""
    in_rows = x.stride == 1
    inputs = [x]
    if need_weights:
        for weight in weights[:-1]:
            target = scratch(x.tensor, rows, Pattern.of(weight.shape).out_features, in_rows)
            step(inputs[-1], weight, target, rows)
            inputs.append(target)
    gradients: list[Tensor] = []
    for position in range(len(weights) - 1, -1, -1):
        pattern = Pattern.of(weights[position].shape)
        if need_weights:
            gradients.append(gradient_of_weight(g, inputs.pop(), pattern, rows))
        if position > 0:
            before = scratch(x.tensor, rows, pattern.in_features, in_rows)
            step(g, weights[position], before, rows, transposed=True)
            g = before
        elif of_x is not None:
            step(g, weights[position], of_x, rows, transposed=True)
    return gradients[::-1]
