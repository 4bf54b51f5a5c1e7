"""Which sizes in a traced forward the model fixes, and which come from the input."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ksurgeon.find.movement import tensor_inputs, tensor_users
from ksurgeon.find.shuffles import certain_channel

__all__ = ["is_fixed"]

_BINARY = (
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div,
    "add", "sub", "mul", "div",
)  # fmt: skip
_UNARY = ("contiguous", "clone", "float", "double", "to", "abs", "square", "detach")


def is_fixed(
    module: nn.Module, source: fx.Node, sink: fx.Node, dim: int, inside: Sequence[fx.Node] = ()
) -> bool:
    """Whether the size of ``source`` along ``dim`` is the same for every input.

    Layers around tell, and constants: tensors that it is combined with, and sizes given as plain numbers.
    ``inside`` are the nodes from the source to the sink, whose constants count as well.
    """
    if certain_channel(module, source, sink) == dim or _before(module, source, dim):
        return True
    return any(_combined(module, node, dim) for node in (*inside, *tensor_users(sink), *tensor_users(source)))


def _before(module: nn.Module, node: fx.Node, dim: int) -> bool:
    value = node.meta.get("value")
    if node.op not in ("call_function", "call_method") or not isinstance(value, Tensor):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name == "unfold":
        return dim == value.dim() - 1 and isinstance(node.args[2], int)
    if name in ("view", "reshape"):
        sizes = node.args[1:] if not isinstance(node.args[1], (tuple, list)) else node.args[1]
        return len(sizes) == value.dim() and type(sizes[dim]) is int and bool(sizes[dim] != -1)
    if _combined(module, node, dim):
        return True
    if name in _UNARY or node.target in _BINARY:
        inputs = tensor_inputs(node)
        return any(_same(n, value) and _before(module, n, dim) for n in inputs)
    return False


def _same(node: fx.Node, value: Tensor) -> bool:
    other = node.meta.get("value")
    return isinstance(other, Tensor) and other.shape == value.shape


def _combined(module: nn.Module, node: fx.Node, dim: int) -> bool:
    """Whether the node combines, entry by entry, with a tensor of the module that has more than one there."""
    value: Any = node.meta.get("value")
    if node.target not in _BINARY or not isinstance(value, Tensor):
        return False
    for other in node.all_input_nodes:
        constant = other.meta.get("value")
        if other.op == "get_attr" and isinstance(constant, Tensor):
            position = dim - value.dim()
            if constant.dim() >= -position and constant.shape[position] > 1:
                return True
    return False
