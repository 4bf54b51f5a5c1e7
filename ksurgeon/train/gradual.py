"""Gradual surgery: a few sites at a time, healing after each, as far as a tolerance allows."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from ksurgeon.errors import TrainingError, TrainingStopped
from ksurgeon.surgery.operate import undo_all
from ksurgeon.surgery.record import Operation, Record, attach, record_of, signature
from ksurgeon.surgery.record_file import parse_record
from ksurgeon.surgery.replay import replay
from ksurgeon.train.checkpoint import Checkpoints
from ksurgeon.train.data import Data, open_data
from ksurgeon.train.groups import Order, operate_on_group, operations_in_groups
from ksurgeon.train.log import Evaluation, Group, Listener, Stage, logged
from ksurgeon.train.options import SettingsOptions
from ksurgeon.train.processes import Stop, is_first_process, signals
from ksurgeon.train.saving import FORMAT, require_same
from ksurgeon.train.session import CHECKPOINTS, place_of, train
from ksurgeon.train.settings import Settings, make_settings
from ksurgeon.train.teacher import FoundTeacher
from ksurgeon.train.trained import Trained

__all__ = ["Gradual", "Metric", "Order", "Stage", "distill_gradually"]

Metric = Callable[[nn.Module], float]
"""What a model is worth; higher is better."""


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
    teacher: nn.Module | FoundTeacher,
    data: Any,
    *,
    groups: int = 4,
    tolerance: float | None = None,
    order: Order = "harmless",
    metric: Metric | None = None,
    settings: Settings | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    preprocessor: Any = None,
    listener: Listener | None = None,
    keep: Callable[[Gradual], object] = lambda _: None,
    **options: Unpack[SettingsOptions],
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
        folder: for the log, a checkpoint after every group, and those of the group in training.
        resume: go on after the last group that is whole in ``folder``, and in the middle of the next one.
        keep: is given the result before the checkpoints are removed.

    Raises:
        TrainingError: the teacher is not what the student was made from, nothing tells what a model is worth,
            or the first group already loses more than the tolerance; and whatever ``distill`` raises.
    """
    record = record_of(student)
    if record is None or not record.operations:
        raise TrainingError("gradual conversion needs a converted student; convert it first")
    if record.folded:
        raise TrainingError(
            "batch norms are folded into layers of the student: call ksurgeon.unfold(student) first, and "
            "fold the result again"
        )
    found = teacher if isinstance(teacher, FoundTeacher) else FoundTeacher(teacher, type(teacher).__name__)
    if signature(found.model) != record.architecture:
        raise TrainingError(
            "gradual conversion needs the model that the student was made from as its teacher"
        )
    place = place_of(folder, resume)
    parts = operations_in_groups(record.operations, groups, order)
    chosen = _shared(make_settings(settings, **options), len(parts))
    opened = open_data(data, student, chosen, preprocessor=preprocessor)
    if metric is None and not opened.held_out:
        raise TrainingError(
            "gradual conversion evaluates the model after every group; set held_out above 0, or give a metric"
        )
    with logged(place, resume, listener) as told:
        surgery = _Surgery(student, record, found, parts, opened, chosen, tolerance, metric, place, told)
        surgery.begin(resume)
        while surgery.goes_on:
            surgery.heal_next(resume, device)
        assert surgery.trained is not None
        result = Gradual(surgery.model, surgery.trained, surgery.stages)
        done = sum(stage.kept for stage in surgery.stages)
        result.left = [operation.path for part in parts[done:] for operation in part]
        with signals(surgery.stop):
            keep(result)
        surgery.end()
    return result


class _Surgery:
    """Gradual surgery between two groups.

    Attributes:
        model: with all groups that were kept.
        trained: the training of the last of them; None before the first.
        stages: of all groups so far; of these only the last may be undone, which ends the surgery.
    """

    def __init__(
        self,
        student: nn.Module,
        record: Record,
        teacher: FoundTeacher,
        parts: list[list[Operation]],
        data: Data,
        settings: Settings,
        tolerance: float | None,
        metric: Metric | None,
        place: Path | None,
        told: Listener,
    ) -> None:
        self.student, self.record, self.teacher, self.parts = student, record, teacher, parts
        self.data, self.settings = data, settings
        self.tolerance, self.metric, self.place, self.told = tolerance, metric, place, told
        self.whole = metric(teacher.model) if metric is not None else 1.0
        self.model = deepcopy(teacher.model)
        self.trained: Trained | None = None
        self.stages: list[Stage] = []
        self.stop = Stop()
        self.checkpoints = Checkpoints(place / CHECKPOINTS) if place is not None else None

    @property
    def goes_on(self) -> bool:
        return len(self.stages) < len(self.parts) and all(stage.kept for stage in self.stages)

    def begin(self, resume: bool) -> None:
        """Go on from the last group in the folder, or clear it."""
        if self.checkpoints is None:
            return
        if not resume:
            self.end()
            return
        saved = self.checkpoints.last()
        if saved is None:
            self.told.note(f"no group is whole in {self.checkpoints.folder}; starting with the first")
            return
        tensors, plain = saved
        require_same(plain["run"], self._identity())
        record = parse_record(plain["record"], self.checkpoints.folder)
        replay(self.model, record)
        self.model.load_state_dict(tensors)
        attach(self.model, record)
        self.trained = Trained.from_plain(self.model, plain["trained"])
        self.stages = [Stage(**stage) for stage in plain["stages"]]
        self.data.broken[:] = self.trained.broken
        self.told.note(f"continuing after group {len(self.stages)} of {len(self.parts)}")

    def heal_next(self, resume: bool, device: str | None) -> None:
        """Operate on the next group and train; undo it if it loses too much."""
        number = len(self.stages)
        operations = self.parts[number]
        group = Group(number + 1, len(self.parts), [operation.path for operation in operations])
        self.told.group(group)
        before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        held = record_of(self.model)
        conversion = operate_on_group(self.model, self.student, self.record, operations)

        def judge(trained: Trained) -> None:
            stage = self._judged(trained.best, group)
            self.told.healed(stage)
            if stage.kept:
                self.trained = trained
            else:
                undo_all(conversion.swaps)
                attach(self.model, held)
                self.model.load_state_dict(before)
            self.stages.append(stage)
            self._save()

        whole = number + 1 == len(self.parts) and signature(self.model) == signature(self.student)
        inner = self.checkpoints.folder / f"group-{group.number}" if self.checkpoints is not None else None
        try:
            train(
                self.model,
                self.teacher,
                self.data,
                self.settings,
                listener=self.told,
                folder=self.place,
                checkpoints=inner,
                resume=resume and inner is not None and inner.is_dir(),
                device=device,
                sites=[result.path for result in conversion.results],
                keep=judge,
                stop=self.stop,
                start=self._as_it_came if whole else None,
            )
        except TrainingError as error:
            raise TrainingError(f"{group}: {error}{self._advice(inner)}") from error
        except KeyboardInterrupt:
            if not self.stages or self.checkpoints is None:
                raise
            raise TrainingStopped(
                f"interrupted in {group}; go on after the last checkpoint with --resume"
            ) from None
        if self.trained is None:
            stage = self.stages[0]
            raise TrainingError(
                f"the first group of sites ({', '.join(stage.paths[:3])}, …) loses {stage.loss:.4g}, more "
                f"than the tolerance of {self.tolerance:g}; allow more, take more groups, or train longer"
            )
        if self.stop and self.goes_on:
            where = "no folder was given for a checkpoint"
            if self.checkpoints is not None:
                where = f"the checkpoint is in {self.checkpoints.folder}; go on with --resume"
            raise TrainingStopped(f"stopped by a signal after {group}; {where}")

    def _as_it_came(self, model: nn.Module) -> None:
        """With all groups the model is the student again, and must not be worse than that was."""
        model.load_state_dict(self.student.state_dict())

    def end(self) -> None:
        """Remove all checkpoints."""
        if self.checkpoints is not None and is_first_process():
            self.checkpoints.remove()

    def _judged(self, best: Evaluation | None, group: Group) -> Stage:
        metric, value, teacher, loss = self._worth(best)
        kept = self.tolerance is None or loss <= self.tolerance
        return Stage(paths=group.paths, metric=metric, value=value, teacher=teacher, loss=loss, kept=kept)

    def _worth(self, best: Evaluation | None) -> tuple[str, float, float, float]:
        """Name of the metric, what it says of the model and of the teacher, and what was lost."""
        if self.metric is not None:
            value = self.metric(self.model)
            return "metric", value, self.whole, self.whole - value
        assert best is not None
        name, value = best.metric, best.value
        if not best.rises:
            return name, value, 0.0, value
        teacher = best.teacher.get(name, 1.0)
        return name, value, teacher, teacher - value

    def _save(self) -> None:
        if self.checkpoints is None or self.trained is None or not is_first_process():
            return
        record = record_of(self.model)
        assert record is not None
        plain = {
            "run": self._identity(),
            "record": record.model_dump(mode="json"),
            "trained": self.trained.to_plain(),
            "stages": [asdict(stage) for stage in self.stages],
        }
        self.checkpoints.save(len(self.stages), self.model.state_dict(), plain)

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the surgery that goes on from it."""
        return {
            "format": FORMAT,
            "data": [self.data.source.name, len(self.data.source)],
            "groups": [[operation.path for operation in part] for part in self.parts],
        }

    def _advice(self, inner: Path | None) -> str:
        if not self.stages or inner is None:
            return ""
        return f"; remove {inner} and --resume to go on after group {len(self.stages)} with other settings"


def _shared(settings: Settings, groups: int) -> Settings:
    parts: dict[str, Any] = {}
    if settings.steps is not None:
        parts["steps"] = max(1, settings.steps // groups)
    for name in ("epochs", "minutes"):
        if (value := getattr(settings, name)) is not None:
            parts[name] = value / groups
    return make_settings(settings, **parts)
