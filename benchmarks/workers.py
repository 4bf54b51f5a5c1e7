"""Candidates in processes of their own that take turns, so that none shares caches, threads or compiled code.

Of each, one short turn at a time runs while all others wait for their next command.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import torch

from benchmarks.results import summary

__all__ = ["Maker", "measure_in_turns", "serve"]

Maker = Callable[[int, int], Callable[[], object]]
"""What a candidate calls, from a batch size and a number of threads."""

_WARM_UP = 3
_ROUNDS = 10


class _Worker:
    def __init__(self, module: str, name: str, arguments: list[str]) -> None:
        command = [sys.executable, "-m", module, "--worker", name, *arguments]
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **command: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the candidate {self.name} ended; what it said stands above")
        return json.loads(answer)


def measure_in_turns(
    module: str,
    names: list[str],
    cases: list[tuple[int, int]],
    seconds: float,
    arguments: list[str],
    told: Callable[[str], object] = print,
) -> Mapping[tuple[int, int], dict[str, dict[str, float]]]:
    """Microseconds per call of every candidate, for every batch size and number of threads.

    Args:
        module: its ``main`` calls ``serve`` where it is given ``--worker NAME``, with the other arguments.
        cases: batch sizes and threads.
        seconds: of every candidate in every case.
    """
    found: dict[tuple[int, int], dict[str, dict[str, float]]] = {}
    with ExitStack() as stack:
        workers = [_Worker(module, name, arguments) for name in names]
        for worker in workers:
            stack.callback(worker.process.kill)
        for batch, threads in cases:
            case: dict[str, list[float]] = {}
            for worker in workers:
                told(f"batch {batch}, {threads} threads: {worker.name}")
                worker.ask(batch=batch, threads=threads, seconds=0.0)
            for _ in range(_ROUNDS):
                for worker in workers:
                    times = worker.ask(batch=batch, threads=threads, seconds=seconds / _ROUNDS)
                    case.setdefault(worker.name, []).extend(times)
            found[batch, threads] = {name: summary(times) for name, times in case.items()}
    return found


def serve(opened: Callable[[], Maker]) -> None:
    """Answer commands of ``measure_in_turns`` until there are no more; the first opens the candidate."""
    answers, sys.stdout = sys.stdout, sys.stderr
    make: Maker | None = None
    case, call = (0, 0), lambda: None
    for line in sys.stdin:
        command = json.loads(line)
        asked = command["batch"], command["threads"]
        torch.set_num_threads(asked[1])
        make = make or opened()
        if asked != case:
            case, call = asked, make(*asked)  # type: ignore[assignment]
            with torch.inference_mode():
                for _ in range(_WARM_UP):
                    call()
        answers.write(json.dumps(_times(call, command["seconds"])) + "\n")
        answers.flush()


@torch.inference_mode()
def _times(call: Callable[[], object], seconds: float) -> list[float]:
    """Microseconds of calls, after one that does not count, as others have had the cache."""
    if not seconds:
        return []
    call()
    times: list[float] = []
    end = perf_counter() + seconds
    while not times or perf_counter() < end:
        start = perf_counter()
        call()
        times.append(1e6 * (perf_counter() - start))
    return times
