"""Before ``from_pretrained`` loads the tensors of a converted model: its K-modules, on the meta device."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ksurgeon.errors import RecordError
from ksurgeon.models import from_transformers
from ksurgeon.site_kinds import kind_of, site_kind
from ksurgeon.surgery.record import Record, signature
from ksurgeon.surgery.replay import replay
from ksurgeon.surgery.untied import TIED_KEYS

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
    _rename(model, record)
    record.architecture = signature(model)
    kept: dict[str, Tensor] = {}
    if any(not site_kind(operation.kind).has_weight for operation in record.operations):
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


def _rename(model: Any, record: Record) -> None:
    """Give the record the paths of this model: with or without the prefix of its base model."""
    prefix = f"{model.base_model_prefix}."

    def inside(path: str) -> bool:
        return path.startswith(prefix)

    every: Callable[[str], bool] = lambda path: True  # noqa: E731
    ways: list[tuple[Callable[[str], bool], Callable[[str], str]]] = [
        (every, lambda path: path),
        (every, lambda path: prefix + path),
        (inside, lambda path: path.removeprefix(prefix)),
    ]
    for kept, rename in ways:
        operations = [
            o.model_copy(update={"path": rename(o.path), "aliases": tuple(map(rename, o.aliases))})
            for o in record.operations
            if kept(o.path)
        ]
        folded = [
            each.model_copy(update={"layer": rename(each.layer), "norm": rename(each.norm)})
            for each in record.folded
            if kept(each.norm)
        ]
        tied = [rename(path) for path in record.int8_tied if kept(path)]
        paths = [o.path for o in operations] + [path for each in folded for path in (each.layer, each.norm)]
        paths += tied
        if paths and all(_there(model, path) for path in paths):
            record.operations, record.folded, record.int8_tied = operations, folded, tied
            return
    paths = [o.path for o in record.operations] + [each.norm for each in record.folded] + record.int8_tied
    missing = next((path for path in paths if not _there(model, path)), "")
    raise RecordError(
        f"the record changes {missing!r}, which {type(model).__name__} does not have: the folder holds "
        "another architecture; load it with the class that was converted, or with the base model of it"
    )


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
    vars(model).update({name: vars(twin)[name] for name in (*held, *TIED_KEYS) if name in vars(twin)})
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
