"""Run damaged files through everything that reads files, each within a limit of time and memory.

Workers are forks of a process that has imported everything. A case that does not end, or kills its worker, is
counted, and a new worker goes on after it. Seconds are those of the processor, so that a busy machine changes
nothing; a case that waits without computing is ended after a minute.
"""

import json
import multiprocessing as mp
import os
import resource
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from random import Random
from typing import Any

import torch

from ksurgeon.errors import KsurgeonError
from tests.fuzz.formats import FORMATS

__all__ = ["Result", "case", "made", "run", "show"]

SECONDS, BYTES = 2.0, 2**30
_WAIT, _ROOM = 60.0, 3 * 2**30


@dataclass(frozen=True)
class Result:
    """One case; ``outcome`` is "read", the name of one of ksurgeon's errors, or what went wrong."""

    format: str
    number: int
    outcome: str
    foreign: bool
    seconds: float = 0.0
    growth: int = 0

    @property
    def failed(self) -> bool:
        return self.foreign or self.seconds > SECONDS or self.growth > BYTES


def run(
    cases: int, seed: int = 0, workers: int = 1, only: Sequence[str] = (), first: int = 0
) -> list[Result]:
    """Results of the cases numbered from ``first``; a case is given by its format, number and seed alone."""
    names = [name for name, each in FORMATS.items() if not only or name in only for _ in range(each.weight)]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        base = Path(place)
        made(names, base)
        states = [
            _Worker(base, names, seed, range(first + w, first + cases, workers), w) for w in range(workers)
        ]
        while any(state.watch() for state in states):
            time.sleep(0.05)
        return [result for state in states for result in state.results()]


def made(names: Sequence[str], base: Path) -> None:
    """A sound example of each format, in a folder of its name."""
    for name in dict.fromkeys(names):
        (base / name).mkdir()
        FORMATS[name].make(base / name)


class _Worker:
    """A process that does its cases in order, and another in its place where it dies."""

    def __init__(self, base: Path, names: Sequence[str], seed: int, numbers: range, place: int) -> None:
        self.base, self.names, self.seed, self.numbers = base, names, seed, numbers
        self.at: Synchronized[int] = mp.Value("q", 0)
        self.file = base / f"results-{place}.jsonl"
        self.lost: list[Result] = []
        self.folder = base / f"worker-{place}"
        self._start()

    def _start(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in dict.fromkeys(self.names):
            shutil.copytree(self.base / name, self.folder / name)
        self.since, self.seen = time.monotonic(), self.at.value
        self.process = mp.get_context("fork").Process(target=self._work)
        self.process.start()

    def watch(self) -> bool:
        """Whether there is more to do."""
        if self.at.value != self.seen:
            self.since, self.seen = time.monotonic(), self.at.value
        if self.process.is_alive():
            if time.monotonic() - self.since < _WAIT:
                return True
            self.process.kill()
            self.process.join()
            self._lose("does not end")
        elif self.at.value < len(self.numbers):
            self._lose(f"killed its process ({self.process.exitcode})")
        else:
            return False
        self._start()
        return True

    def _lose(self, how: str) -> None:
        number = self.numbers[self.at.value]
        self.lost.append(Result(self._name(number), number, how, foreign=True))
        self.at.value += 1

    def results(self) -> Iterator[Result]:
        yield from self.lost
        if self.file.exists():
            yield from (Result(**json.loads(line)) for line in self.file.read_text().splitlines())

    def _name(self, number: int) -> str:
        return self.names[number % len(self.names)]

    def _work(self) -> None:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        os.chdir(self.folder)
        with open(os.devnull, "w") as nothing, self.file.open("a") as told:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM, used + _ROOM))
            parent = os.getppid()
            while self.at.value < len(self.numbers) and os.getppid() == parent:
                number = self.numbers[self.at.value]
                told.write(json.dumps(vars(case(self._name(number), self.folder, number, self.seed))) + "\n")
                told.flush()
                self.at.value += 1


def case(name: str, folder: Path, number: int, seed: int) -> Result:
    """What comes of one case, in a folder where ``made`` put the sound examples."""
    random = Random(f"{seed}/{name}/{number}")
    FORMATS[name].damage(random, folder / name)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    outcome, foreign = "read", False
    try:
        FORMATS[name].read(folder / name)
    except KsurgeonError as error:
        outcome = type(error).__name__
    except BaseException as error:
        outcome, foreign = f"{type(error).__name__}: {str(error)[:200]}", True
    after = resource.getrusage(resource.RUSAGE_SELF)
    growth = (after.ru_maxrss - before.ru_maxrss) * 1024
    return Result(name, number, outcome, foreign, round(time.process_time() - began, 3), growth)


def show(results: Sequence[Result], print: Any = print) -> None:
    """A table: for every format the cases, how many were read and refused, what failed, the extremes."""
    print(
        f"{'format':28} {'cases':>7} {'read':>7} {'refused':>7} {'foreign':>7} {'slowest':>9} {'largest':>9}"
    )
    for name in FORMATS:
        own = [result for result in results if result.format == name]
        if own:
            read, foreign = sum(r.outcome == "read" for r in own), sum(r.foreign for r in own)
            slowest, largest = max(r.seconds for r in own), max(r.growth for r in own)
            print(
                f"{name:28} {len(own):7} {read:7} {len(own) - read - foreign:7} {foreign:7} {slowest:7.2f} s "
                f"{largest >> 20:5} MiB"
            )
    print(f"{len(results)} cases, {sum(r.failed for r in results)} failed")
    for result in sorted((r for r in results if r.failed), key=lambda r: (r.format, r.outcome))[:200]:
        print(
            f"{result.format} {result.number}: {result.outcome} ({result.seconds:.1f} s, "
            f"{result.growth >> 20} MiB)"
        )
