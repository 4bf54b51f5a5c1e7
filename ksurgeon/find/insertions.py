"""Places where a map could be inserted: what a module takes first, and what it gives, along a dimension."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ksurgeon.find.layers import is_graph_module, paths_of
from ksurgeon.find.recording import Call, Recording, TensorSpec
from ksurgeon.find.site import Site
from ksurgeon.kmatrix.structured import StructuredMatrix
from ksurgeon.site_kinds import kind_of

__all__ = ["find_insertions"]


def find_insertions(model: nn.Module, recording: Recording | None) -> list[Site]:
    """Sites of kind "insertion", in the order of the modules; one without a dimension where none is possible.

    The map of a module that is called several times is applied at every call.
    """
    sites: list[Site] = []
    paths, maps = paths_of(model), _maps(model)
    for module in model.modules():
        path, *aliases = paths[id(module)]
        for place in ("before", "after"):
            sites += _at(module, path, tuple(aliases), place, recording, id(module) in maps)
    return sites


def _maps(model: nn.Module) -> set[int]:
    """Modules, by ``id``, that a revert takes away: K-matrices, and placeholders beside one."""
    found: set[int] = set()
    for module in model.modules():
        kind = kind_of(module)
        if isinstance(module, StructuredMatrix) or (kind is not None and not kind.has_weight):
            found.update(map(id, module.modules()))
        for child in module.children():
            names = [name for name, _ in getattr(child, "replaced", ())]
            found.update(id(module._modules.get(name)) for name in names)
    return found


def _at(
    module: nn.Module,
    path: str,
    aliases: tuple[str, ...],
    place: str,
    recording: Recording | None,
    is_map: bool,
) -> Iterator[Site]:
    def site(dim: int | None, reason: str | None, **known: Any) -> Site:
        own = f"{path}:{place}" if dim is None else f"{path}:{place}.dim{dim}"
        there = any(getattr(child, "site", None) == own for child in module.children())
        return Site(
            kind="insertion",
            path=own,
            owner=path,
            aliases=aliases,
            dim=dim,
            reason="a map was inserted there before" if there else reason,
            class_name=type(module).__name__,
            facts={"place": place},
            **known,
        )

    calls = _calls(module, recording)
    specs = [spec for call in calls if isinstance(spec := _tensor(call, place), TensorSpec)]
    whole = (
        "it is the whole model, whose hooks torch.fx leaves out; insert before or after a module inside it"
    )
    reason = _obstacle(module, place, recording, calls, specs) if path else whole
    if is_map:
        reason = "it belongs to a K-matrix, with which a revert would take it away; " + (
            f"insert {place} another module, or at the same time as it"
        )
    if reason is not None:
        yield site(None, reason, in_features=0, out_features=0)
        return
    assert recording is not None
    first = specs[0]
    entries = recording.counts[id(module)] * torch.Size(first.shape).numel() // recording.batch
    for dim, size in enumerate(first.shape):
        sizes = {spec.shape[dim] for spec in specs}
        varied = f"its calls have {' and '.join(map(str, sorted(sizes)))} entries there"
        reason = "the first dimension is the batch's" if dim == 0 else varied if len(sizes) > 1 else None
        yield site(
            dim,
            reason,
            in_features=size,
            out_features=size,
            ndim=len(first.shape),
            dtype=str(first.dtype).removeprefix("torch."),
            vectors=entries // max(1, size),
        )


def _calls(module: nn.Module, recording: Recording | None) -> list[Call]:
    if recording is None or id(module) not in recording.first:
        return []
    return [recording.first[id(module)], *recording.others.get(id(module), ())]


def _tensor(call: Call, place: str) -> Any:
    """What would be mapped."""
    if place == "after":
        return call.output
    return call.args[0] if call.args else None


def _obstacle(
    module: nn.Module, place: str, recording: Recording | None, calls: list[Call], specs: list[TensorSpec]
) -> str | None:
    """Why no map can be inserted, along whatever dimension."""
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit.script or torch.jit.trace"
    if (graph := is_graph_module(module)) is not None:
        return graph
    if recording is None:
        return "what it takes is not known without example inputs"
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return f"a {type(module).__name__} calls all modules in it; insert {place} one of those"
    if not calls:
        used = any(recording.uses.get(id(parameter)) for parameter in module.parameters(recurse=False))
        return (
            "a forward reads its weight and does not call it, which would skip the map"
            if used
            else "nothing called it in the example run"
        )
    if id(module) in recording.unknown:
        return "it is called in more ways than were looked at"
    if len(specs) < len(calls):
        if place == "after":
            return "what it gives is no single tensor; insert after a module inside it"
        if any(not call.args and call.kwargs for call in calls):
            return "it is called with keyword arguments alone; insert before a module inside it"
        return "its first argument is no tensor"
    kinds = {spec.dtype for spec in specs}
    if len(kinds) > 1 or not all(kind.is_floating_point for kind in kinds):
        return f"its tensor is of {' and '.join(sorted(str(kind).removeprefix('torch.') for kind in kinds))}"
    ranks = {len(spec.shape) for spec in specs}
    if len(ranks) > 1 or 0 in ranks:
        return f"its tensors have {' and '.join(map(str, sorted(ranks)))} dimensions"
    return None
