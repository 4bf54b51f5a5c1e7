"""Which nodes of a traced forward only move data, and where they form a region with one way in and out."""

import operator
import sys
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ksurgeon.find.patches import packed
from ksurgeon.find.tracer import Trace

__all__ = [
    "Region",
    "as_function",
    "is_constant",
    "is_movement",
    "is_movement_module",
    "kept_constants",
    "regions",
    "tensor_inputs",
    "tensor_users",
]

_NAMES = frozenset(
    {
        "T",
        "cat",
        "channel_shuffle",
        "chunk",
        "clone",
        "concat",
        "concatenate",
        "column_stack",
        "contiguous",
        "dsplit",
        "dstack",
        "flatten",
        "flip",
        "gather",
        "hsplit",
        "hstack",
        "index_select",
        "mT",
        "moveaxis",
        "movedim",
        "narrow",
        "native_channel_shuffle",
        "permute",
        "pixel_shuffle",
        "pixel_unshuffle",
        "ravel",
        "reshape",
        "reshape_as",
        "roll",
        "row_stack",
        "select",
        "split",
        "squeeze",
        "stack",
        "swapaxes",
        "swapdims",
        "t",
        "take_along_dim",
        "tensor_split",
        "transpose",
        "unbind",
        "unflatten",
        "unsqueeze",
        "view",
        "view_as",
        "vsplit",
        "vstack",
    }
)
_FUNCTIONS = frozenset(
    id(function)
    for namespace in (torch, F)
    for name in _NAMES
    if (function := getattr(namespace, name, None)) is not None
)
# Functions that make a tensor from sizes, and functions of tensors that give another result every time.
_MAKERS = frozenset({"arange", "tensor", "full", "zeros", "ones", "eye", "linspace"})
_RANDOM = frozenset(
    {"bernoulli", "dropout", "multinomial", "normal", "rand_like", "randint_like", "randn_like"}
)
_MODULES = (nn.ChannelShuffle, nn.Flatten, nn.Unflatten, nn.Identity, nn.PixelShuffle, nn.PixelUnshuffle)


class Region:
    """Movement nodes that lead from ``source`` to ``sink`` and nowhere else, in the order they run."""

    def __init__(self, source: fx.Node, nodes: list[fx.Node]) -> None:
        self.source, self.nodes = source, nodes

    @property
    def sink(self) -> fx.Node:
        return self.nodes[-1]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, (tuple, list)) and bool(value) and all(isinstance(item, Tensor) for item in value)
    )


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Inputs of a node that are tensors or lists of tensors, constant indices left out."""
    return [n for n in node.all_input_nodes if not is_constant(n) and _is_tensor(n.meta.get("value"))]


def is_constant(node: fx.Node) -> bool:
    """Whether the node is a tensor of the module's own, or one computed from such and from sizes alone."""
    if "constant" not in node.meta:
        node.meta["constant"] = _is_constant(node)
    return bool(node.meta["constant"])


def _is_constant(node: fx.Node) -> bool:
    if node.op == "get_attr":
        return True
    if node.op not in ("call_function", "call_method") or not _is_tensor(node.meta.get("value")):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    inputs = [n for n in node.all_input_nodes if _is_tensor(n.meta.get("value"))]
    return (bool(inputs) or name in _MAKERS) and name not in _RANDOM and all(map(is_constant, inputs))


def _learns(node: fx.Node) -> bool:
    """Whether training changes a constant: it is computed from a parameter."""
    if "learns" not in node.meta:
        node.meta["learns"] = (
            bool(getattr(node.meta.get("attribute"), "requires_grad", False))
            if node.op == "get_attr"
            else any(map(_learns, node.all_input_nodes))
        )
    return bool(node.meta["learns"])


def tensor_users(node: fx.Node) -> list[fx.Node]:
    """Users that take the node's entries; those that only read its shape are left out."""
    return [user for user in node.users if user.op == "output" or _is_tensor(user.meta.get("value"))]


def kept_constants(trace: Trace, gone: Collection[fx.Node] = ()) -> list[str]:
    """Constants of the trace that are still read once the nodes in ``gone`` are not there any more."""

    @cache
    def is_read(node: fx.Node) -> bool:
        return any(user not in gone and (not is_constant(user) or is_read(user)) for user in node.users)

    return [
        str(name)
        for node in trace.graph.nodes
        for name in (node.target, *node.args)
        if isinstance(name, str) and name in trace.constants and is_read(node)
    ]


def is_movement_module(module: nn.Module) -> bool:
    """Whether the module is one of torch.nn or einops that only moves data."""
    layers = sys.modules.get("einops.layers.torch")
    return type(module) in _MODULES or (layers is not None and type(module) is layers.Rearrange)


def as_function(module: nn.Module) -> nn.Module:
    """The module itself, or for a layer of einops, whose forward FX cannot follow, one that calls einops."""
    layers = sys.modules.get("einops.layers.torch")
    return _Rearranges(module) if layers is not None and type(module) is layers.Rearrange else module


class _Rearranges(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.pattern, self.sizes = layer.pattern, dict(layer.axes_lengths)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        import einops

        return einops.rearrange(input, self.pattern, **self.sizes)  # type: ignore[arg-type, no-any-return]


def is_movement(node: fx.Node, movers: set[str]) -> bool:
    """Whether the node only moves entries about; ``movers`` are the children known to do so."""
    if not _is_tensor(node.meta.get("value")):
        return False
    if node.op == "call_module":
        return str(node.target) in movers
    if is_constant(node) or any(is_constant(n) and _learns(n) for n in node.all_input_nodes):
        return False
    if node.op == "call_method":
        return node.target in _NAMES and bool(tensor_inputs(node))
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return bool(tensor_inputs(node)) and all(map(is_constant, _index_tensors(node)))
    if node.target is getattr:
        return node.args[1] in ("T", "mT")
    if node.target is torch.einsum or node.target is packed:
        return len(tensor_inputs(node)) == 1 or node.target is packed
    einops = sys.modules.get("einops")
    return id(node.target) in _FUNCTIONS or (
        einops is not None and node.target in (einops.rearrange, einops.unpack)
    )


def _index_tensors(node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(node.args[1], lambda n: found.append(n) if _is_tensor(n.meta.get("value")) else None)
    return found


def regions(graph: fx.Graph, movers: set[str]) -> Iterator[Region]:
    """Candidate regions, by sink in the order of the graph, smallest first.

    A region ends in a tensor of the shape it began with, and nothing outside reads what is inside.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    moving = {node for node in graph.nodes if is_movement(node, movers)}
    for sink in graph.nodes:
        if sink not in moving or not isinstance(sink.meta["value"], Tensor):
            continue
        inside: set[fx.Node] = set()
        frontier = {sink}
        while frontier:
            last = max(frontier, key=order.__getitem__)
            if frontier == {last} and inside and _fits(last, sink, inside):
                yield Region(last, sorted(inside, key=order.__getitem__))
            if last not in moving:
                break
            frontier.discard(last)
            inside.add(last)
            frontier.update(tensor_inputs(last))


def _fits(source: fx.Node, sink: fx.Node, inside: set[fx.Node]) -> bool:
    value = source.meta["value"]
    return (
        isinstance(value, Tensor)
        and value.shape == sink.meta["value"].shape
        and all(user in inside for node in inside if node is not sink for user in tensor_users(node))
    )
