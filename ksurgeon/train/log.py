"""What a training tells while it runs, and who may listen."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

from ksurgeon.errors import FolderError
from ksurgeon.train.processes import is_first_process

__all__ = [
    "Evaluation",
    "Group",
    "JsonLog",
    "Listener",
    "Listeners",
    "Phase",
    "Stage",
    "Step",
    "logged",
]

_RISING = ("accuracy", "agreement", "cosine")  # metrics that decide, the first of them that there is


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step.

    Attributes:
        progress: share of the training that is done, by steps or by time, whichever ends it.
        terms: mean of each loss term, before weighting.
        rate: examples per second since the last such report.
    """

    step: int
    total: int | None
    progress: float
    seconds: float
    loss: float
    terms: dict[str, float]
    lr: float
    gradient: float
    rate: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out examples: their loss, and metrics of teacher and student side by side.

    Attributes:
        examples: number of them.
        is_best: whether no evaluation before was as good.
    """

    step: int
    seconds: float
    loss: float
    student: dict[str, float] = field(default_factory=dict)
    teacher: dict[str, float] = field(default_factory=dict)
    examples: int = 0
    is_best: bool = False

    @property
    def metric(self) -> str:
        """Name of what decides: accuracy, agreement, cosine or error, the first there is, or the loss."""
        return next((name for name in (*_RISING, "error") if name in self.student), "loss")

    @property
    def value(self) -> float:
        """What decides."""
        return self.student.get(self.metric, self.loss)

    @property
    def rises(self) -> bool:
        """Whether more of what decides is better."""
        return self.metric in _RISING

    def is_finite(self) -> bool:
        """Whether the loss and the metric that decides are."""
        return isfinite(self.loss) and isfinite(self.value)

    def betters(self, other: "Evaluation") -> bool:
        """Whether it is better by the metric that decides; where that is the same, by the loss."""
        return self._worth() > other._worth()

    def _worth(self) -> tuple[bool, float, float]:
        if not self.is_finite():
            return False, 0.0, 0.0
        return True, self.value if self.rises else -self.value, -self.loss


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a training that is over: the model before and after, and whether the change was kept."""

    name: str
    before: Evaluation
    after: Evaluation
    kept: bool

    def __str__(self) -> str:
        told = ", ".join(
            f"{name} {before:.4f} → {after:.4f}"
            for name, before, after in (
                (self.before.metric, self.before.value, self.after.value),
                ("loss", self.before.loss, self.after.loss),
            )
        )
        return f"{self.name}: {told} on {self.after.examples} held-out examples: " + (
            "kept" if self.kept else "no better, undone"
        )


@dataclass(frozen=True)
class Group:
    """One group of sites of gradual surgery, of which there are ``groups``; ``number`` counts from 1."""

    number: int
    groups: int
    paths: list[str]

    def __str__(self) -> str:
        return f"group {self.number} of {self.groups}"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What became of one group of sites: healed and kept, or undone.

    Attributes:
        metric: name of what was compared with the tolerance.
        value: what the model was worth after healing.
        teacher: what the teacher is worth, in the same metric.
        loss: what was lost against the teacher, of all groups so far.
    """

    paths: list[str]
    metric: str
    value: float
    teacher: float
    loss: float
    kept: bool


class Listener:
    """Is told what happens; every method does nothing unless overridden."""

    def stage(self, name: str, total: int) -> None:
        """A stage with so many parts begins."""

    def part(self, done: int, what: str) -> None:
        """Of the stage, so many parts are done, and ``what`` is next."""

    def step(self, step: Step) -> None:
        """A step of the end-to-end training."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """An evaluation on held-out examples."""

    def group(self, group: Group) -> None:
        """Gradual surgery goes on to a group of sites; what follows is about it."""

    def judged(self, phase: Phase) -> None:
        """A part of the training is over, and was kept or undone."""

    def healed(self, stage: Stage) -> None:
        """The group was trained, and kept or undone."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def job(self, name: str) -> "Listener":
        """A listener for one of several trainings side by side."""
        return self

    def close(self) -> None:
        """Nothing more is told."""


class Listeners(Listener):
    """Several listeners as one."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self.listeners = list(listeners)

    def stage(self, name: str, total: int) -> None:
        for listener in self.listeners:
            listener.stage(name, total)

    def part(self, done: int, what: str) -> None:
        for listener in self.listeners:
            listener.part(done, what)

    def step(self, step: Step) -> None:
        for listener in self.listeners:
            listener.step(step)

    def evaluated(self, evaluation: Evaluation) -> None:
        for listener in self.listeners:
            listener.evaluated(evaluation)

    def group(self, group: Group) -> None:
        for listener in self.listeners:
            listener.group(group)

    def judged(self, phase: Phase) -> None:
        for listener in self.listeners:
            listener.judged(phase)

    def healed(self, stage: Stage) -> None:
        for listener in self.listeners:
            listener.healed(stage)

    def note(self, text: str) -> None:
        for listener in self.listeners:
            listener.note(text)


class JsonLog(Listener):
    """One JSON object a line for every stage, step, evaluation and note; gradual surgery's tell the group.

    The file is opened with the first of them.

    Args:
        append: after what it holds, in place of it.

    Every method raises ``FolderError`` if it cannot write.
    """

    def __init__(self, file: Path, append: bool) -> None:
        self._file, self._append = file, append
        self._stream: TextIO | None = None
        self._group: dict[str, Any] = {}

    def stage(self, name: str, total: int) -> None:
        self._write("stage", {"name": name, "total": total})

    def step(self, step: Step) -> None:
        self._write("step", asdict(step))

    def evaluated(self, evaluation: Evaluation) -> None:
        self._write("evaluation", asdict(evaluation))

    def group(self, group: Group) -> None:
        self._group = {"group": group.number}
        self._write("group", {"groups": group.groups, "paths": group.paths})

    def judged(self, phase: Phase) -> None:
        self._write("phase", asdict(phase))

    def healed(self, stage: Stage) -> None:
        self._write("healed", asdict(stage))

    def note(self, text: str) -> None:
        self._write("note", {"text": text})

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            with suppress(OSError):  # of a line that could not be written and was told then
                self._stream.close()

    def _write(self, event: str, data: dict[str, Any]) -> None:
        line = {"event": event, "time": round(time.time(), 3), **self._group, **data}
        try:
            if self._stream is None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._file.open("a" if self._append else "w", encoding="utf-8", buffering=1)
            self._stream.write(json.dumps(line) + "\n")
        except OSError as error:
            raise FolderError(f"the log {self._file} could not be written: {error.strerror}") from error


@contextmanager
def logged(folder: Path | None, append: bool, listener: Listener | None) -> Iterator[Listener]:
    """Inside, a listener that tells the one given, and writes ``log.jsonl`` in the folder.

    Of several processes only the first tells anything.
    """
    if not is_first_process():
        yield Listener()
        return
    log = JsonLog(folder / "log.jsonl", append) if folder is not None else None
    try:
        yield Listeners([part for part in (listener, log) if part is not None])
    finally:
        if log is not None:
            log.close()
