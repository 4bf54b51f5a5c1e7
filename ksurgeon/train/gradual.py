"""Gradual surgery: a few sites at a time, healing after each, as far as a tolerance allows."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn

from ksurgeon.errors import TrainingError
from ksurgeon.rules.plan import Decision, Plan
from ksurgeon.surgery.convert import convert
from ksurgeon.surgery.kinds import KINDS
from ksurgeon.surgery.operate import undo_all
from ksurgeon.surgery.record import Operation, Record, attach, inputs_from, record_of, signature
from ksurgeon.train.data import open_data
from ksurgeon.train.distill import Trained, distill
from ksurgeon.train.log import Evaluation, Listener
from ksurgeon.train.settings import Settings, make_settings

__all__ = ["Gradual", "Metric", "Order", "Stage", "distill_gradually"]

Metric = Callable[[nn.Module], float]
"""What a model is worth; higher is better."""

Order = Literal["harmless", "back"]

_RISING = ("accuracy", "agreement", "cosine")  # metrics on held-out examples, the best one first


@dataclass(frozen=True)
class Stage:
    """One group of sites: their paths, what the model was worth after healing, and what it lost in all."""

    paths: list[str]
    value: float
    loss: float
    kept: bool


@dataclass
class Gradual:
    """What gradual surgery came to.

    Attributes:
        model: a new model; the student and the teacher are as they were.
        trained: the last training that was kept.
        left: paths that were left as they are in the original.
    """

    model: nn.Module
    trained: Trained
    stages: list[Stage] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def distill_gradually(
    student: nn.Module,
    teacher: nn.Module,
    data: Any,
    *,
    groups: int = 4,
    tolerance: float | None = None,
    order: Order = "harmless",
    metric: Metric | None = None,
    settings: Settings | None = None,
    device: str | None = None,
    preprocessor: Any = None,
    listener: Listener | None = None,
    **options: Any,
) -> Gradual:
    """Operate again on the teacher, some of the student's sites at a time, and distil after each group.

    Args:
        student: a converted model, whose K-modules are used.
        teacher: the model that it was made from.
        data, settings, device, preprocessor, listener, options: as for ``distill``; steps, epochs and minutes
            are those of all groups together.
        groups: number of groups.
        tolerance: what may be lost against the teacher: of ``metric``, or of the first of accuracy, agreement
            and cosine on the held-out examples that there is, or the relative error itself. A group that
            loses more even after healing is undone, and the surgery ends.
        order: "harmless" takes those sites first whose outputs changed least; "back" goes from the last site
            to the first.
        metric: what counts, in place of the held-out examples.

    Raises:
        TrainingError: the teacher is not what the student was made from, or the first group already loses
            more than the tolerance; and whatever ``distill`` raises.
    """
    record = record_of(student)
    if record is None or not record.operations:
        raise TrainingError("gradual surgery needs a converted student, whose sites it takes one by one")
    if signature(teacher) != record.architecture:
        raise TrainingError("gradual surgery needs the model that the student was made from as its teacher")
    chosen = _shared(make_settings(settings, **options), groups)
    opened = open_data(data, student, chosen, preprocessor=preprocessor)
    model = deepcopy(teacher)
    whole = metric(teacher) if metric is not None else 1.0
    result: Gradual | None = None
    pending = _groups(record.operations, groups, order)
    while pending:
        paths = [operation.path for operation in pending[0]]
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        held = record_of(model)
        conversion = _operate(model, student, record, pending[0])
        new = [result.path for result in conversion.results]
        trained = distill(
            model, teacher, opened, settings=chosen, device=device, sites=new, listener=listener
        )
        value, loss = _worth(model, trained.best, metric, whole)
        kept = tolerance is None or loss <= tolerance
        stage = Stage(paths, value, loss, kept)
        if listener is not None:
            listener.note(
                f"{len(paths)} more sites ({paths[0]}, …): {value:.4f}, {loss:.4f} lost"
                + ("" if kept else f", more than {tolerance}: undone")
            )
        if kept:
            result = Gradual(model, trained, [*(result.stages if result else []), stage])
            pending = pending[1:]
            continue
        undo_all(conversion.swaps)
        attach(model, held)
        model.load_state_dict(before)
        if result is None:
            raise TrainingError(
                f"the first group of sites ({', '.join(paths[:3])}, …) loses {loss:.4g}, more than the "
                f"tolerance of {tolerance:g}; allow more, take more groups, or train longer"
            )
        result.stages.append(stage)
        break
    assert result is not None
    result.left = [operation.path for group in pending for operation in group]
    return result


def _groups(operations: Sequence[Operation], count: int, order: Order) -> list[list[Operation]]:
    """The operations in groups; maps inside a forward all in the first, as a forward is changed once."""
    first = [o for o in operations if KINDS[o.kind].is_original is not None]
    rest = [o for o in operations if KINDS[o.kind].is_original is None]
    if order == "back":
        rest.reverse()
    else:
        rest.sort(key=lambda o: o.output_error if o.output_error is not None else o.weight_error or 0.0)
    count = max(1, min(count, len(rest)))
    cuts = [round(len(rest) * part / count) for part in range(count + 1)]
    parts = [rest[begin:end] for begin, end in pairwise(cuts)]
    parts[0] = first + parts[0]
    return [part for part in parts if part]


def _operate(model: nn.Module, student: nn.Module, record: Record, operations: list[Operation]) -> Any:
    decisions = [
        Decision(
            path=operation.path,
            kind=operation.kind,
            action="replace",
            reason="gradual surgery",
            structure=operation.structure,
            start="exact" if operation.start == "exact" else "identity",
            parts=operation.parts,
            parameters_before=operation.parameters_before,
            parameters_after=operation.parameters_after,
            multiplications_before=0,
            multiplications_after=0,
        )
        for operation in operations
    ]
    inputs = inputs_from(record.inputs) if record.inputs is not None else None
    plan = Plan(rule=", ".join(record.rules), decisions=decisions)
    conversion = convert(model, example_inputs=inputs, source=record.source, plan=plan)
    for result in conversion.results:
        _copy_values(model.get_submodule(result.path), student, result.path)
    own = record_of(model)
    assert own is not None
    errors = {o.path: (o.start, o.weight_error, o.output_error) for o in operations}
    for operation in own.operations:
        if operation.path in errors:
            operation.start, operation.weight_error, operation.output_error = errors[operation.path]
    return conversion


def _copy_values(module: nn.Module, student: nn.Module, path: str) -> None:
    try:
        fitted = student.get_submodule(path).state_dict()
    except AttributeError:
        return  # a map inside a forward, exact in both
    own: dict[str, Tensor] = module.state_dict()
    if {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in fitted.items()}:
        module.load_state_dict(fitted)


def _shared(settings: Settings, groups: int) -> Settings:
    parts: dict[str, Any] = {}
    if settings.steps is not None:
        parts["steps"] = max(1, settings.steps // groups)
    for name in ("epochs", "minutes"):
        if (value := getattr(settings, name)) is not None:
            parts[name] = value / groups
    return make_settings(settings, **parts)


def _worth(
    model: nn.Module, best: Evaluation | None, metric: Metric | None, whole: float
) -> tuple[float, float]:
    """What the model is worth, and what it lost against the teacher."""
    if metric is not None:
        value = metric(model)
        return value, whole - value
    if best is None or not best.student:
        raise TrainingError("a tolerance needs held-out examples or a metric; set held_out above 0")
    name = next((n for n in _RISING if n in best.student), None)
    if name is None:
        value = best.student.get("error", best.loss)
        return value, value
    return best.student[name], best.teacher.get(name, 1.0) - best.student[name]
