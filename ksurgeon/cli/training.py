"""A training on the terminal: a bar with rate and time left, and a line for every evaluation."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

from ksurgeon.cli.console import say
from ksurgeon.report.terminal import warn
from ksurgeon.train.log import Evaluation, Group, Listener, Phase, Stage, Step

__all__ = ["TerminalListener", "describe_stage", "side_by_side"]

_EVERY = 10.0  # seconds between two lines where there is no terminal


class TerminalListener(Listener):
    """Draws on a console; where that is no terminal, plain lines, a few a minute.

    Args:
        name: of one of several trainings side by side, before everything that it tells.
        bar: that all of them draw on.
    """

    def __init__(self, console: Console, name: str = "", bar: Progress | None = None) -> None:
        self.console, self._name, self._bar = console, name, bar
        self._task: TaskID | None = None
        self._stage, self._total, self._last, self._rate = "", 0, 0.0, 0.0
        self._group = ""
        self._owns_bar = console.is_terminal and bar is None
        if self._owns_bar:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[what]}", style="dim", markup=False),
                console=console,
                transient=True,
                speed_estimate_period=120,
            )
            self._bar.start()

    def stage(self, name: str, total: int) -> None:
        name = " · ".join(part for part in (self._name, self._group, name) if part)
        self._stage, self._total, self._last = name, total, 0.0
        if self._bar is None:
            say(name)
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=1.0, what="")

    def part(self, done: int, what: str) -> None:
        self._show(done / max(self._total, 1), f"{done}/{self._total} {what}")

    def step(self, step: Step) -> None:
        self._rate = 0.9 * self._rate + 0.1 * step.rate if self._rate else step.rate
        of = f"/{step.total}" if step.total else ""
        left = step.seconds * (1 - step.progress) / max(step.progress, 1e-9)
        terms = " ".join(f"{name} {value:.4g}" for name, value in step.terms.items())
        text = f"step {step.step}{of} · loss {step.loss:.4g} ({terms}) · {self._rate:.1f} examples/s"
        self._show(step.progress, text if self._bar is not None else f"{text} · {_minutes(left)} left")

    def evaluated(self, evaluation: Evaluation) -> None:
        best = " *" if evaluation.is_best else ""
        metrics = side_by_side(evaluation.student, evaluation.teacher)
        self._say(
            f"step {evaluation.step:>6} · {_minutes(evaluation.seconds):>8} · held out: loss "
            f"{evaluation.loss:.4f}{metrics and ' · ' + metrics}{best}"
        )

    def group(self, group: Group) -> None:
        self._group = str(group)
        named = ", ".join(group.paths[:3]) + (", …" if len(group.paths) > 3 else "")
        self._say(f"{group}: {len(group.paths)} sites ({named})")

    def judged(self, phase: Phase) -> None:
        self._say(str(phase))

    def healed(self, stage: Stage) -> None:
        self._say(f"{self._group}: {describe_stage(stage)}")

    def note(self, text: str) -> None:
        if "RANDOM" in text:
            warn(self.console, text, "RANDOM WEIGHTS")
        else:
            self._say(text)

    def job(self, name: str) -> Listener:
        return TerminalListener(self.console, name, self._bar)

    def close(self) -> None:
        """Take the bar away, or this training's part of it."""
        if self._bar is not None and self._owns_bar:
            self._bar.stop()
        elif self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def _show(self, share: float, what: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=share, what=what)
        elif time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            say(f"{self._stage}: {what}")

    def _say(self, text: str) -> None:
        text = f"{self._name} · {text}" if self._name else text
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            say(text)


def side_by_side(student: dict[str, float], teacher: dict[str, float]) -> str:
    """Metrics of both, the teacher's in brackets where it has one."""
    shown = [
        f"{name} {value:.4f}" + (f" (teacher {teacher[name]:.4f})" if name in teacher else "")
        for name, value in student.items()
    ]
    return ", ".join(shown)


def describe_stage(stage: Stage) -> str:
    """What a group of gradual surgery came to, the teacher's metric beside the student's."""
    metrics = side_by_side({stage.metric: stage.value}, {stage.metric: stage.teacher})
    return f"{metrics}, {stage.loss:.4f} lost{'' if stage.kept else ', more than is tolerated: undone'}"


def _minutes(seconds: Any) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
