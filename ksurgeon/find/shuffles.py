"""Recognise channel shuffles, however they are spelled."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from ksurgeon.find.match import Match
from ksurgeon.find.movement import Region, is_movement, regions, tensor_inputs, tensor_users
from ksurgeon.find.probe import moved_dimension
from ksurgeon.find.recording import channel_dim_of, is_elementwise
from ksurgeon.find.tracer import Trace
from ksurgeon.kmatrix.shuffle import shuffle_permutation

__all__ = ["certain_channel", "find_shuffles", "only_moves"]


def only_moves(trace: Trace, movers: set[str]) -> bool:
    """Whether the whole forward does nothing but move entries of its one input."""
    work = [node for node in trace.graph.nodes if node.op != "output" and isinstance(_value(node), Tensor)]
    inputs = [node for node in work if node.op == "placeholder"]
    return len(inputs) == 1 and all(n is inputs[0] or is_movement(n, movers) for n in work)


def find_shuffles(module: nn.Module, trace: Trace, movers: set[str]) -> Iterator[Match]:
    """Channel shuffles among the movements of a traced forward, in the order they run.

    ``movers`` are the paths of children that only move data.
    """
    taken: set[fx.Node] = set()
    for region in regions(trace.graph, movers):
        if taken.intersection(region.nodes):
            continue
        if len(region.nodes) == 1 and region.sink.op == "call_module":
            continue  # the child is a site of its own
        found = moved_dimension(module, region)
        if found is None:
            continue
        dim, permutation = found
        groups = _groups(permutation)
        if groups and dim in _channel_dims(module, region):
            taken.update(region.nodes)
            yield Match(
                kind="channel_shuffle",
                region=region,
                in_features=len(permutation),
                out_features=len(permutation),
                dim=dim,
                permutation=permutation,
                groups=groups,
            )


def _groups(permutation: tuple[int, ...]) -> int:
    """Groups of the channel shuffle that the permutation is; 0 if it is none."""
    channels, step = len(permutation), permutation[1] if len(permutation) > 1 else 0
    if step < 2 or channels % step or permutation != shuffle_permutation(channels, channels // step):
        return 0
    return channels // step


def _channel_dims(module: nn.Module, region: Region) -> set[int]:
    """Dimensions that may hold the channels of what the region permutes.

    The layers around tell; where there are none, PyTorch's convention does.
    """
    ndim = region.source.meta["value"].dim()
    certain = certain_channel(module, region.source, region.sink)
    if certain is not None:
        return {certain}
    convention = _before(module, region.source, convention=True)
    if convention is not None:
        return {convention}
    return {1, ndim - 1} if ndim > 2 else {1}


def certain_channel(module: nn.Module, source: fx.Node, sink: fx.Node) -> int | None:
    """Dimension that holds the channels where a region goes from ``source`` to ``sink``, if layers tell."""
    certain = _before(module, source)
    return _after(module, sink) if certain is None else certain


def _value(node: fx.Node) -> Any:
    return node.meta.get("value")


def _before(module: nn.Module, node: fx.Node, convention: bool = False) -> int | None:
    """Channel dimension of a node's value as the layers before it tell."""
    value = _value(node)
    if not isinstance(value, Tensor):
        return None
    known: int | None = getattr(value, "_ksurgeon_channel", None)
    if node.op == "placeholder":
        return 1 if known is None and convention and value.dim() > 3 else known
    if node.op == "call_module":
        child = module.get_submodule(str(node.target))
        if known is None and is_elementwise(child):
            return _through(module, node, convention)
        return known if known is not None else channel_dim_of(child, value.dim())
    if node.target in (F.conv1d, F.conv2d, F.conv3d, F.batch_norm, F.group_norm):
        return 1
    if node.target in (F.linear, F.layer_norm, F.embedding):
        return value.dim() - 1
    inputs = tensor_inputs(node)
    if not inputs:
        return None
    dim = _before(module, inputs[0], convention)
    return dim if dim is None else _permuted(node, dim, value.dim())


def _through(module: nn.Module, node: fx.Node, convention: bool) -> int | None:
    inputs = tensor_inputs(node)
    return _before(module, inputs[0], convention) if inputs else None


def _permuted(node: fx.Node, dim: int, ndim: int) -> int | None:
    """Where a dimension goes: permutations move it, reshapes lose it, everything of equal shape keeps it."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name in ("transpose", "swapaxes", "swapdims"):
        first, second = (int(a) % ndim for a in node.args[1:3])  # type: ignore[arg-type]
        return {first: second, second: first}.get(dim, dim)
    if name == "permute":
        order = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
        return [int(a) % ndim for a in order].index(dim)  # type: ignore[arg-type]
    source = _value(tensor_inputs(node)[0])
    if isinstance(source, Tensor) and (source.shape == _value(node).shape or name in ("cat", "concat")):
        return dim
    return (
        dim if name in ("getitem", "chunk", "split") and isinstance(source, (Tensor, tuple, list)) else None
    )


def _after(module: nn.Module, node: fx.Node) -> int | None:
    """Channel dimension of a node's value as the layers after it tell."""
    ndim = _value(node).dim()
    for user in tensor_users(node):
        dim: int | None = None
        if user.op == "call_module":
            child = module.get_submodule(str(user.target))
            dim = ndim - 1 if isinstance(child, nn.Embedding) else channel_dim_of(child, ndim)
            if dim is None and is_elementwise(child):
                dim = _after(module, user)
        elif user.target in (F.conv1d, F.conv2d, F.conv3d, F.batch_norm, F.group_norm):
            dim = 1
        elif user.target in (F.linear, F.layer_norm):
            dim = ndim - 1
        elif isinstance(_value(user), Tensor) and _value(user).shape == _value(node).shape:
            name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
            if name not in ("transpose", "swapaxes", "swapdims", "permute", "view", "reshape"):
                dim = _after(module, user)
        if dim is not None:
            return dim
    return None
