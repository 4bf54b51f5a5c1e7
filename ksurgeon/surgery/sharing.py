"""What stands in several places of a model: one layer under two names, tied tensors; told, and done again."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.errors import RecordError

__all__ = ["memory_of", "share", "sharing", "unshare"]

_Key = tuple[object, ...]
_MISSING = object()


def memory_of(tensor: Tensor, name: str) -> _Key:
    """Equal for tensors that are the same entries in memory; ``name`` stands for one that has none."""
    try:
        address = tensor.data_ptr() if tensor.numel() else 0
    except (RuntimeError, ValueError):  # not initialised yet, or without memory of its own
        address = 0
    if not address:
        return (name,)
    return (tensor.device, address, tensor.shape, tensor.stride(), tensor.dtype)


def sharing(model: nn.Module) -> dict[str, str]:
    """Every further name of a module with tensors, or of a tensor of the state, and its first name.

    What is inside a module that is named is not named again.
    """
    modules, tensors, found = {id(model): ""}, dict[_Key, str](), dict[str, str]()

    def visit(module: nn.Module, prefix: str) -> None:
        own = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if tensor is not None and name not in module._non_persistent_buffers_set:
                first = tensors.setdefault(memory_of(tensor, prefix + name), prefix + name)
                if first != prefix + name:
                    found[prefix + name] = first
        for name, child in module._modules.items():
            if child is None:
                continue
            first = modules.setdefault(id(child), prefix + name)
            if first == prefix + name:
                visit(child, f"{first}.")
            elif any(True for _ in child.parameters()) or any(True for _ in child.buffers()):
                found[prefix + name] = first

    visit(model, "")
    return found


@dataclass
class _Slot:
    """An entry of a module's children, parameters or buffers, and what it is to be."""

    table: dict[str, Any]
    name: str
    old: Any
    new: Any = None

    def do(self) -> None:
        self.table[self.name] = self.new

    def undo(self) -> None:
        if self.old is _MISSING:
            del self.table[self.name]
        else:
            self.table[self.name] = self.old


def unshare(model: nn.Module, shared: Mapping[str, str]) -> list[_Slot]:
    """What takes apart that the model shares and ``shared`` does not name; copies take its place."""
    slots = [_slot(model, name) for name in sharing(model) if name not in shared]
    for slot in slots:
        slot.new = copy.deepcopy(slot.old) if isinstance(slot.old, nn.Module) else _copied(slot.old)
    return slots


def share(model: nn.Module, name: str, first: str) -> _Slot:
    """What puts in the place ``name`` what stands at ``first``.

    Raises:
        RecordError: there is no such place.
    """
    source, slot = _slot(model, first), _slot(model, name)
    if slot.old is _MISSING and isinstance(source.old, nn.Module):
        slot.table = model.get_submodule(name.rpartition(".")[0])._modules
    elif slot.old is _MISSING or isinstance(slot.old, nn.Module) is not isinstance(source.old, nn.Module):
        raise RecordError(
            f"the record shares {first!r} with {name!r}, and this model has no such place; it was made with "
            "another version of the model's code"
        )
    slot.new = source.old
    return slot


def _slot(model: nn.Module, path: str) -> _Slot:
    parent, _, name = path.rpartition(".")
    try:
        owner = model.get_submodule(parent)
    except AttributeError as error:
        raise RecordError(f"the record shares {path!r}, which this model does not have") from error
    for table in (owner._modules, owner._parameters, owner._buffers):
        if table.get(name) is not None:
            return _Slot(table, name, table[name])
    return _Slot({}, name, _MISSING)


@torch.no_grad()
def _copied(tensor: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
    return tensor.clone()
