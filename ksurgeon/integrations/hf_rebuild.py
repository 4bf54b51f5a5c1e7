"""Before ``from_pretrained`` loads the tensors of a converted model: its K-modules, on the meta device."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ksurgeon.errors import RecordError
from ksurgeon.models import from_transformers
from ksurgeon.surgery.kinds import KINDS, kind_of
from ksurgeon.surgery.record import Operation, Record, signature
from ksurgeon.surgery.replay import replay

__all__ = ["rebuild", "restore"]


def rebuild(
    model: Any, record: Record, checkpoint_files: Sequence[str] | None
) -> tuple[Record, dict[str, Tensor]]:
    """Put the K-modules of a record into a model without values.

    Returns:
        The record as it is true for this model, which may be the base of the one that was converted, or have
        a head where that had none; and the values of what no checkpoint holds, by name.

    Raises:
        RecordError: the record or the checkpoint belongs to another model.
    """
    record = record.model_copy(deep=True)
    record.operations = _operations_for(model, record.operations)
    record.architecture = signature(model)
    kept: dict[str, Tensor] = {}
    if any(KINDS[operation.kind].is_original is not None for operation in record.operations):
        kept = _graft(model, record)
    else:
        replay(model, record)
    _require_values(model, checkpoint_files)
    record.source = next(iter(from_transformers.infer(model)), None)
    return record, kept


def restore(model: nn.Module, kept: dict[str, Tensor]) -> None:
    """Give back the values that no checkpoint holds, on the devices where the model is now."""
    for name, value in kept.items():
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        device = next((p.device for p in owner.parameters()), value.device)
        owner._buffers[attribute] = value.to(device)


def _operations_for(model: Any, operations: list[Operation]) -> list[Operation]:
    """The operations by the paths of this model: with or without the prefix of its base model."""
    if all(_there(model, operation.path) for operation in operations):
        return operations
    prefix = f"{model.base_model_prefix}."
    if all(_there(model, prefix + operation.path) for operation in operations):
        return [_renamed(operation, lambda path: prefix + path) for operation in operations]
    inside = [operation for operation in operations if operation.path.startswith(prefix)]
    shorter = [_renamed(operation, lambda path: path.removeprefix(prefix)) for operation in inside]
    if shorter and all(_there(model, operation.path) for operation in shorter):
        return shorter
    missing = next(o.path for o in operations if not _there(model, o.path))
    raise RecordError(
        f"the record replaces {missing!r}, which {type(model).__name__} does not have: the folder holds "
        "another architecture; load it with the class that was converted, or with the base model of it"
    )


def _renamed(operation: Operation, rename: Any) -> Operation:
    paths = {"path": rename(operation.path), "aliases": tuple(map(rename, operation.aliases))}
    return operation.model_copy(update=paths)


def _there(model: nn.Module, path: str) -> bool:
    path, _, _ = path.partition(":")
    try:
        model.get_submodule(path)
    except AttributeError:
        parent, _, name = path.rpartition(".")
        try:
            return name in model.get_submodule(parent)._parameters
        except AttributeError:
            return False
    return True


def _graft(model: Any, record: Record) -> dict[str, Tensor]:
    """Maps inside a forward are found by running it, which takes values: a twin with random ones is
    converted, and what it is made of handed over."""
    with torch.device("cpu"):
        twin = type(model)(model.config).eval()
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.normal_(std=0.02)
        replay(twin, record)
    kept = {
        f"{path}.{name}" if path else name: buffer
        for path, module in twin.named_modules()
        if kind_of(module) is not None
        for name, buffer in _transient(module)
    }
    twin.to("meta")
    for module in twin.modules():
        vars(module).pop("_is_hf_initialized", None)
    model.__class__ = type(twin)
    held = ("_modules", "_parameters", "_buffers", "_forward_pre_hooks", "_forward_hooks")
    vars(model).update({name: vars(twin)[name] for name in held})
    return kept


def _transient(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    state = module.state_dict()
    return [(name, buffer) for name, buffer in module.named_buffers() if name not in state]


def _require_values(model: Any, checkpoint_files: Sequence[str] | None) -> None:
    """A factor that the checkpoint lacks would be left to chance."""
    if not checkpoint_files or not all(str(file).endswith(".safetensors") for file in checkpoint_files):
        return
    there: set[str] = set()
    for file in checkpoint_files:
        try:
            with safe_open(file, framework="pt") as tensors:
                there.update(tensors.keys())
        except (OSError, SafetensorError) as error:
            raise RecordError(f"{file} is missing or damaged: {error}; convert the model again") from error
    prefix = f"{model.base_model_prefix}."
    missing = [
        name
        for path, module in model.named_modules()
        if kind_of(module) is not None
        for name in (f"{path}.{own}" for own in module.state_dict())
        if not {name, prefix + name, name.removeprefix(prefix)} & there
    ]
    missing = [name for name in missing if not name.endswith(".bias")]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise RecordError(
            f"{', '.join(missing[:3])}{more} of the converted layers "
            f"{'are' if len(missing) > 1 else 'is'} not in the checkpoint; it does not belong to its record: "
            "convert the model again"
        )
