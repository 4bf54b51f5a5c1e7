"""The record as it is true now: others change a converted model too, by a new head most of all."""

from torch import nn

from ksurgeon.errors import KsurgeonError, SurgeryError
from ksurgeon.models.opening import build, guess_sources, skeleton
from ksurgeon.models.source import Source
from ksurgeon.surgery.activation import FusedActivation
from ksurgeon.surgery.computed import child_of
from ksurgeon.surgery.kinds import KINDS, kind_of
from ksurgeon.surgery.record import Operation, Record, record_of, signature
from ksurgeon.surgery.replay import replay

__all__ = ["current_record", "standing_record"]


def standing_record(model: nn.Module) -> Record | None:
    """A copy of the model's record without the operations whose K-module is gone; asks for no tensor.

    Raises:
        SurgeryError: a K-module is gone, and with it the activation that it had taken over.
    """
    record = record_of(model)
    if record is None:
        return None
    record = record.model_copy(deep=True)
    if any(operation.form == "dense" for operation in record.operations):
        return record  # a dense layer in the place of a shuffle is not told from those of the architecture
    stands = [operation for operation in record.operations if _stands(model, operation)]
    if len(stands) < len(record.operations):
        _require_activations(model, [operation for operation in record.operations if operation not in stands])
        record.operations = stands
        _forget_measures(model, record)
    return record


def current_record(model: nn.Module) -> Record | None:
    """A copy of the model's record without what others undid since: ``reset_classifier``, a new ``fc``.

    Operations whose K-module is gone are left out, the architecture is that which the model would have
    without K-modules, and the source is one that builds it, or None where none is found that does. What was
    measured on the model is forgotten if it changed.

    Raises:
        SurgeryError: as of ``standing_record``.
    """
    before, record = record_of(model), standing_record(model)
    if before is None or record is None:
        return None
    if not record.architecture or any(operation.form == "dense" for operation in record.operations):
        return record
    record.architecture = _architecture(model, record, record.operations)
    if len(record.operations) < len(before.operations) or record.architecture != before.architecture:
        _forget_measures(model, record)
        record.source = next((s for s in _sources(model, record) if _gives(s, record, model)), None)
    return record


def _forget_measures(model: nn.Module, record: Record) -> None:
    if record.outcome is None:
        return
    now = sum(parameter.numel() for parameter in model.parameters())
    saved = sum(o.parameters_before - o.parameters_after for o in record.operations)
    measured = ("output_change", "multiplications", "latency", "latency_quartiles")
    changed = {"parameters": (now + saved, now), **dict.fromkeys(measured)}
    record.outcome = record.outcome.model_copy(update=changed)


def _stands(model: nn.Module, operation: Operation) -> bool:
    """Whether the K-module of an operation is still in the model."""
    kind = KINDS[operation.kind]
    if kind.is_original is not None:
        return any(
            getattr(m, "site", None) == operation.path for m in model.modules() if isinstance(m, kind.modules)
        )
    try:
        there = model.get_submodule(_layer_path(operation))
    except AttributeError:
        return False
    return any(isinstance(module, kind.modules) for module in there.modules())  # inside an adapter, too


def _require_activations(model: nn.Module, gone: list[Operation]) -> None:
    for operation in gone:
        path = operation.activation_path
        try:
            present = model.get_submodule(path) if path else None
        except AttributeError:
            continue
        if isinstance(present, FusedActivation):
            raise SurgeryError(
                f"{operation.path} was a K-layer that applied {present.replaced[0]} in place of {path}, and "
                f"is none any more: nothing applies it now. Put it back, model.set_submodule({path!r}, "
                f"torch.nn.{present.replaced[0]}), or torch.nn.Identity() where it is to go"
            )


def _layer_path(operation: Operation) -> str:
    if not operation.parameter:
        return operation.path
    return f"{operation.path.removesuffix(operation.parameter)}{child_of(operation.parameter)}"


def _architecture(
    model: nn.Module, record: Record, operations: list[Operation]
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model without K-modules, those still there in the order of the record."""
    ours = [(p, m) for p, m in model.named_modules(remove_duplicate=False) if kind_of(m) is not None]
    inside = [f"{path}." for path, _ in ours]
    own = {n: shape for n, shape in signature(model).items() if not n.startswith(tuple(inside))}
    replaced = {operation.path for operation in operations if operation.parameter}
    below = [f"{o.path.partition(':')[0]}." for o in operations if not o.parameter]
    for path, module in ours:
        parent = path.removesuffix(path.rpartition(".")[2])
        below += [f"{parent}{name}." for name, _ in getattr(module, "replaced", ())]
    kept = {
        name: own.get(name, shape)
        for name, shape in record.architecture.items()
        if name in own or name in replaced or name.startswith(tuple(below))
    }
    return kept | own


def _sources(model: nn.Module, record: Record) -> list[Source]:
    """What may build the model as it is now: the source of the conversion, with other options."""
    given = record.source
    if given is None or given.options.get("trust_remote_code"):
        return []
    sources = [given]
    for guess in guess_sources(model):
        for options in (given.options | guess.options, guess.options):
            source = given.model_copy(update={"options": options})
            if guess.kind == given.kind and source not in sources:
                sources.append(source)
    return sources


def _gives(source: Source, record: Record, model: nn.Module) -> bool:
    """Whether the record, done to what the source builds, gives the model but for its values."""
    try:
        if signature(skeleton(source)) != record.architecture:
            return False
        other = build(source)
        replay(other, record)
    except KsurgeonError:
        return False
    return str(other) == str(model)
