"""Times of candidates that run in turns, so that a change of the machine's clock or load meets them all.

With several threads, an operator of PyTorch's own runs before each short call, untimed: in a model a layer
finds the cores as such an operator leaves them, with its threads waiting for the next one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch

from benchmarks.results import summary

__all__ = ["Call", "compared", "measure"]

Call = Callable[[], object]
_TURN, _FEWEST, _LONG = 3e-3, 5, 3.0
_SHARED = 1 << 16  # entries for which PyTorch takes two threads
_SHORT = 1e-2  # seconds of a call before which another one is made, untimed, to have its data in the cache


@dataclass
class _Runner:
    call: Call
    before: Call | None
    clock: Callable[[], float]
    loops: int = 1
    short: bool = False
    spent: float = 0.0
    times: list[float] = field(default_factory=list)

    def warm_up(self) -> None:
        once = self._run()
        if once < 0.1:
            self._run()
            once = self._run()
        elif once > 1:  # long enough to count
            self.times.append(once * 1e6)
            self.spent += once
        self.short = once < _SHORT
        self.loops = max(1, int(_TURN / max(once, 1e-7)))

    def _run(self) -> float:
        if self.before is not None:
            self.before()
        if self.short:
            self.call()
            if torch.get_num_threads() > 1:
                return self._run_between_operators()
        start = self.clock()
        for _ in range(self.loops):
            self.call()
        return self.clock() - start

    def _run_between_operators(self) -> float:
        entries, taken = torch.ones(_SHARED), 0.0
        for _ in range(self.loops):
            entries.relu_()
            start = self.clock()
            self.call()
            taken += self.clock() - start
        return taken

    def turn(self) -> None:
        taken = self._run()
        self.spent += taken
        self.times.append(taken / self.loops * 1e6)

    def done(self, seconds: float) -> bool:
        fewest = _FEWEST if self.spent < _LONG else 3
        return self.spent >= seconds and len(self.times) >= fewest


def measure(
    calls: Mapping[str, Call],
    seconds: float,
    before: Mapping[str, Call] | None = None,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, dict[str, float]]:
    """Microseconds per call of every candidate, in turns of some milliseconds, ``seconds`` for each.

    A turn of short calls begins with one that does not count, as others have had the cache meanwhile.
    ``before`` is done before a candidate's turn, untimed. With one thread, ``time.process_time`` is a clock
    that other programs on the machine do not disturb.
    """
    runners = {name: _Runner(call, (before or {}).get(name), clock) for name, call in calls.items()}
    for runner in runners.values():
        runner.warm_up()
    while waiting := [runner for runner in runners.values() if not runner.done(seconds)]:
        for runner in waiting:
            runner.turn()
    return {name: summary(runner.times) for name, runner in runners.items()}


def compared(
    part: str, case: str, rows: int, times: dict[str, dict[str, float]], wanted: Mapping[str, float]
) -> dict[str, Any]:
    """One row of results: how many times the first candidate's time each of the others takes.

    ``wanted`` are the ratios that are asked for at least.
    """
    ours, *others = times
    ratios = {name: times[name]["median"] / times[ours]["median"] for name in others}
    return {
        "part": part,
        "case": case,
        "rows": rows,
        "us": times,
        "ratios": ratios,
        "wanted": {name: ratio for name, ratio in wanted.items() if name in ratios},
    }
