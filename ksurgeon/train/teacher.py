"""The teacher of a converted folder, where nobody names one."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ksurgeon.errors import KsurgeonError, TrainingError
from ksurgeon.models.names import parse
from ksurgeon.models.opening import open_model, require_leave
from ksurgeon.models.source import Source
from ksurgeon.site_kinds import site_kind
from ksurgeon.surgery.record import Record, record_of
from ksurgeon.surgery.revert import revert
from ksurgeon.surgery.storage import load

__all__ = ["FoundTeacher", "find_teacher"]


@dataclass(frozen=True)
class FoundTeacher:
    """A teacher, what it is called, and what the user has to know about its weights."""

    model: nn.Module
    name: str
    warning: str | None = None


def find_teacher(
    student: nn.Module,
    name: str | None = None,
    weights: str | None = None,
    trust_remote_code: bool = False,
) -> FoundTeacher:
    """The teacher that is named, or the model that the student was made from, with its weights.

    Args:
        student: a converted model; not changed.
        name: as any command takes a model; a converted folder is a model too.
        weights: of the teacher: "auto", "pretrained", "random", or a file; left out, those that the student
            was made from.
        trust_remote_code: whether code that the student's record or the named folder brings or names may run.

    Raises:
        TrainingError: there is none, or its weights are not to be had.
        RecordError: code would run that was not allowed.
    """
    if name is not None:
        return _named(name, weights or "auto", trust_remote_code)
    record = record_of(student)
    if record is None:
        raise TrainingError(
            "the student has no record of a conversion, which names its teacher; give a teacher"
        )
    exact = _is_untouched(record)
    source = record.source
    if source is None or (source.weights == "given" and source.kind != "function"):
        if exact:
            return _reverted(student)
        raise TrainingError(
            "the record does not say where the weights before the conversion came from; name the teacher "
            "(--teacher), and its weights if they are in a file (--teacher-weights)"
        )
    require_leave(source.as_trusted() if trust_remote_code else source)
    used = weights or {"given": "auto"}.get(source.weights, source.weights)
    options = source.options
    if source.kind == "transformers":  # of which the config, too, is read anew
        options = {name: value for name, value in options.items() if name == "trust_remote_code"}
    try:
        opened = open_model(_spelled(source), weights=used, seed=record.seed, options=options)
    except KsurgeonError as error:
        if exact:
            return _reverted(student)
        raise TrainingError(f"the teacher {source.name} with weights {used}: {error}") from error
    notes = list(opened.notes)
    if opened.source.weights == "random" or source.weights == "random":
        notes = [
            f"The teacher {source.name} has RANDOM weights: the student learns nothing of use from it, and "
            "figures below say nothing about a trained model."
        ]
    return FoundTeacher(opened.model, source.name, "; ".join(notes) or None)


def _reverted(student: nn.Module) -> FoundTeacher:
    return FoundTeacher(revert(deepcopy(student)).eval(), "the original that the surgery kept exactly")


def _spelled(source: Source) -> str:
    """The name of a source as a user writes it."""
    if source.kind == "transformers" and not Path(source.name).exists():
        return f"hf:{source.name}"
    return f"{source.kind}:{source.name}" if source.kind in ("timm", "torchvision") else source.name


def _named(name: str, weights: str, trust_remote_code: bool) -> FoundTeacher:
    kind, _ = parse(name)
    if kind == "ksurgeon":
        return FoundTeacher(load(name, trust_remote_code=trust_remote_code), name)
    options = {"trust_remote_code": True} if trust_remote_code and kind == "transformers" else None
    opened = open_model(name, weights=weights, options=options)
    random = opened.source.weights == "random"
    warning = f"The teacher {name} has RANDOM weights. " if random else ""
    return FoundTeacher(opened.model, name, (warning + "; ".join(opened.notes)) or None)


def _is_untouched(record: Record) -> bool:
    """Whether all that was done was exact, and nothing was trained since."""
    exact = all(
        operation.start == "exact" and not site_kind(operation.kind).has_weight
        for operation in record.operations
    )
    return exact and not record.trainings
