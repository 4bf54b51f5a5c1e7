"""How far a training is, by steps or by time, and the learning rate that goes with it."""

import time
from math import cos, pi

from ksurgeon.train.settings import Settings

__all__ = ["Clock", "rate_at"]

_EPOCHS = 3.0  # where nothing limits the training


class Clock:
    """Progress from 0 to 1: by steps, by time, or by both, whichever is ahead.

    Args:
        batches: steps of one pass over the data.
        used: seconds of the time allowed that were spent before the first step.

    Attributes:
        total: steps of the whole training; None where only time limits it.
        before: seconds that were spent before this clock began, before a resumption too.
    """

    def __init__(self, settings: Settings, batches: int, used: float = 0.0) -> None:
        limits = [settings.steps] if settings.steps else []
        epochs = settings.epochs
        if epochs is None and settings.steps is None and settings.minutes is None:
            epochs = _EPOCHS
        if epochs is not None:
            limits.append(max(1, round(epochs * batches)))
        self.total = min(limits) if limits else None
        self.seconds = settings.minutes * 60 if settings.minutes else None
        self.used = self.before = used
        self._begin = time.perf_counter()

    def start(self) -> None:
        """The first step comes now: what was spent so far is not of the time that progress is measured by."""
        self.used = self.elapsed

    @property
    def elapsed(self) -> float:
        """Seconds since the training began, those before a resumption included."""
        return self.before + time.perf_counter() - self._begin

    def progress(self, step: int, elapsed: float) -> float:
        """Share of the training that is over after so many steps and seconds."""
        by_steps = step / self.total if self.total else 0.0
        by_time = 0.0
        if self.seconds:
            by_time = (elapsed - self.used) / max(self.seconds - self.used, 1e-9)
        return min(1.0, max(by_steps, by_time))


def rate_at(progress: float, settings: Settings) -> float:
    """Share of the peak learning rate: a linear rise, then what the schedule says."""
    warmup = settings.warmup
    if progress < warmup:
        return max(progress / warmup, 0.01)
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "multistep":
        return settings.gamma ** sum(progress >= milestone for milestone in settings.milestones)
    return 0.5 + 0.5 * cos(pi * min(1.0, (progress - warmup) / (1 - warmup)))
