"""What a training tells while it runs, and who may listen."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

__all__ = ["Evaluation", "JsonLog", "Listener", "Listeners", "Step"]


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
    """Held-out examples: their loss, and metrics of teacher and student side by side."""

    step: int
    seconds: float
    loss: float
    student: dict[str, float] = field(default_factory=dict)
    teacher: dict[str, float] = field(default_factory=dict)
    is_best: bool = False


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

    def note(self, text: str) -> None:
        """Something that the user should know."""


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

    def note(self, text: str) -> None:
        for listener in self.listeners:
            listener.note(text)


class JsonLog(Listener):
    """One JSON object a line for every step, evaluation and note."""

    def __init__(self, file: Path, append: bool) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stream: TextIO = file.open("a" if append else "w", encoding="utf-8", buffering=1)

    def stage(self, name: str, total: int) -> None:
        self._write("stage", {"name": name, "total": total})

    def step(self, step: Step) -> None:
        self._write("step", asdict(step))

    def evaluated(self, evaluation: Evaluation) -> None:
        self._write("evaluation", asdict(evaluation))

    def note(self, text: str) -> None:
        self._write("note", {"text": text})

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _write(self, event: str, data: dict[str, Any]) -> None:
        self._stream.write(json.dumps({"event": event, "time": round(time.time(), 3), **data}) + "\n")
