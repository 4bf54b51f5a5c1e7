"""The record as it is true now: others change a converted model too, by a new head most of all."""

from torch import nn

from ksurgeon.errors import KsurgeonError, SurgeryError
from ksurgeon.find.inputs import is_offloaded
from ksurgeon.kmatrix.int8_tied import TiedInt8Linear
from ksurgeon.models.opening import build, guess_sources, skeleton
from ksurgeon.models.source import Source
from ksurgeon.site_kinds import site_kind
from ksurgeon.surgery.computed import child_of
from ksurgeon.surgery.folded import MARK, FoldedNorm
from ksurgeon.surgery.record import Folded, Operation, Record, record_of, signature
from ksurgeon.surgery.replay import replay
from ksurgeon.surgery.sizes import count_parameters

__all__ = ["current_record", "layer_paths", "replacements_of", "standing_record"]


def standing_record(model: nn.Module) -> Record | None:
    """A copy of the model's record without the operations whose K-module is gone; asks for no tensor."""
    record = record_of(model)
    if record is None:
        return None
    record = record.model_copy(deep=True)
    record.folded = [each for each in record.folded if _is_folded(model, each)]
    record.int8_tied = [path for path in record.int8_tied if _is_tied(model, path)]
    if any(operation.form == "dense" for operation in record.operations):
        return record  # a dense layer in the place of a shuffle is not told from those of the architecture
    stands = [operation for operation in record.operations if _stands(model, operation)]
    if len(stands) < len(record.operations):
        record.operations = stands
        _forget_measures(model, record)
    return record


def current_record(model: nn.Module) -> Record | None:
    """A copy of the model's record without what others undid since: ``reset_classifier``, a new ``fc``.

    Operations whose K-module is gone are left out, the architecture is that which the model would have
    without K-modules, and the source is one that builds it, or None where none is found that does. What was
    measured on the model is forgotten if it changed.

    Raises:
        SurgeryError: accelerate offloads weights of the model.
    """
    before, record = record_of(model), standing_record(model)
    if before is None or record is None:
        return None
    if is_offloaded(model):
        raise SurgeryError(
            "accelerate keeps weights of this model elsewhere; bring them back first: "
            "accelerate.hooks.remove_hook_from_module(model, recurse=True)"
        )
    if not record.architecture or any(operation.form == "dense" for operation in record.operations):
        return record
    record.architecture = _architecture(model, record)
    if len(record.operations) < len(before.operations) or record.architecture != before.architecture:
        _forget_measures(model, record)
        record.source = next((s for s in _sources(model, record) if _gives(s, record, model)), None)
    return record


def _is_folded(model: nn.Module, folded: Folded) -> bool:
    """Whether the two modules of a fold are still those."""
    layer, norm = (next(iter(modules_at(model, path)), None) for path in (folded.layer, folded.norm))
    return isinstance(norm, FoldedNorm) and getattr(layer, "bias", None) is not None


def _is_tied(model: nn.Module, path: str) -> bool:
    """Whether the layer is still computed in int8 by a copy of its weight."""
    return any(isinstance(module, TiedInt8Linear) for module in modules_at(model, path))


def _forget_measures(model: nn.Module, record: Record) -> None:
    if record.outcome is None:
        return
    now = count_parameters(model)
    saved = sum(o.parameters_before - o.parameters_after for o in record.operations)
    measured = ("bytes", "output_change", "multiplications", "latency", "latency_quartiles")
    changed = {"parameters": (now + saved, now), **dict.fromkeys(measured)}
    record.outcome = record.outcome.model_copy(update=changed)


def _stands(model: nn.Module, operation: Operation) -> bool:
    """Whether the K-module of an operation is still in the model."""
    return bool(replacements_of(model, operation))


def replacements_of(model: nn.Module, operation: Operation) -> list[nn.Module]:
    """The K-modules that an operation put into the model, as far as they are there; usually one."""
    kind = site_kind(operation.kind)
    if not kind.has_weight:
        ours = (m for m in model.modules() if isinstance(m, kind.classes))
        return [m for m in ours if getattr(m, "site", None) == operation.path]
    return [
        module
        for path in layer_paths(operation)
        for module in modules_at(model, path)
        if isinstance(module, kind.classes)
    ]


def modules_at(model: nn.Module, path: str) -> list[nn.Module]:
    """The module of that path and all inside it, as an adapter holds the layer; none if there is none."""
    try:
        return list(model.get_submodule(path).modules())
    except AttributeError:
        return []


def layer_paths(operation: Operation) -> list[str]:
    """Where the K-module of an operation on a layer or parameter stands; several of a shared layer."""
    name, paths = operation.parameter, [operation.path, *operation.aliases]
    return [f"{path.removesuffix(name)}{child_of(name)}" for path in paths] if name else paths


def _architecture(model: nn.Module, record: Record) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model without the K-modules that the operations put there, those still there in
    the order of the record; K-modules of the model's own are part of it."""
    put = {id(m): o for o in record.operations for m in replacements_of(model, o)}
    ours = [(p, m, put[id(m)]) for p, m in model.named_modules(remove_duplicate=False) if id(m) in put]
    inside = [f"{path}." for path, _, _ in ours]
    own = {n: shape for n, shape in signature(model).items() if not n.startswith(tuple(inside))}
    replaced = {o.path for o in record.operations if o.parameter}
    below = [
        f"{o.path.partition(':')[0]}."
        for o in record.operations
        if not (o.parameter or site_kind(o.kind).inserts)
    ]
    for path, module, operation in ours:
        parent = path.removesuffix(path.rpartition(".")[2])
        below += [f"{parent}{name}." for name, _ in getattr(module, "replaced", ())]
        if operation.parameter:
            replaced.add(parent + operation.parameter)
        else:
            below.append(f"{path}.")
    kept = {
        name: own.get(name, shape)
        for name, shape in record.architecture.items()
        if name in own or name in replaced or name.startswith(tuple(below))
    }
    added = {f"{each.norm}.{MARK}" for each in record.folded}
    added |= {f"{each.layer}.bias" for each in record.folded if not each.had_bias}
    return {name: shape for name, shape in (kept | own).items() if name not in added}


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
