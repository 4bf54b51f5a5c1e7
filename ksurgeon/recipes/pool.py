"""Jobs side by side in processes, each of which may fail or be killed without the others."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from ksurgeon.errors import KsurgeonError
from ksurgeon.recipes.job import Job, carry_out
from ksurgeon.train.log import Evaluation, Listener, Phase, Step
from ksurgeon.workers import cause_of_end

__all__ = ["carry_out_all"]

_SPAWN = multiprocessing.get_context("spawn")
_OFTEN = 0.2  # seconds between two messages about steps
_PATIENCE = 60.0  # seconds that a process has for its last checkpoint

Results = dict[str, Any]
Finished = Callable[[Job, Results | None, str], None]


def carry_out_all(jobs: Sequence[Job], count: int, told: Listener, finished: Finished) -> None:
    """Carry out jobs in order, ``count`` at a time, with one thread each if they are several; a job that
    begins with what another one makes waits for that.

    An interrupt lets every process write a checkpoint first.

    Args:
        told: gives each job a listener of its own.
        finished: is told each job's results, or None and why there are none.
    """
    waiting, idle, failed = list(jobs), list[_Worker](), set[str]()
    busy: dict[Any, _Worker] = {}
    try:
        while waiting or busy:
            while len(busy) < count and (job := _next(waiting, busy.values())) is not None:
                waiting.remove(job)
                worker = idle.pop() if idle else _Worker(one_thread=count > 1)
                busy[worker.connection] = worker
                worker.begin(job, told)
            for connection in wait(list(busy)):
                worker = busy[connection]
                try:
                    end = worker.hear()
                except (EOFError, OSError):
                    worker.process.join()
                    end = (None, cause_of_end(worker.process.exitcode or 0))
                else:
                    if end is not None:
                        idle.append(worker)
                if end is not None:
                    del busy[connection]
                    worker.listener.close()
                    finished(worker.job, *end)
                    if end[0] is None:
                        failed.add(worker.job.name)
            for job in [job for job in waiting if job.needs in failed]:
                waiting.remove(job)
                finished(job, None, f"{job.needs}, with whose model it begins, failed")
    finally:
        workers = [*busy.values(), *idle]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.end()


def _next(waiting: Sequence[Job], busy: "Iterable[_Worker]") -> Job | None:
    """The first job that needs none of those that are not done."""
    open_jobs = {job.name for job in waiting} | {worker.job.name for worker in busy}
    return next((job for job in waiting if job.needs not in open_jobs), None)


class _Worker:
    """A process, and the job it is at."""

    job: Job
    listener: Listener

    def __init__(self, one_thread: bool) -> None:
        self.connection, other = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(other, one_thread))
        self.process.start()
        other.close()

    def begin(self, job: Job, told: Listener) -> None:
        self.job, self.listener = job, told.job(job.name)
        with suppress(OSError):  # it ended; that is heard next
            self.connection.send(job)

    def hear(self) -> tuple[Results | None, str] | None:
        """Pass on what it tells; how the job ended, if it did."""
        what, *values = self.connection.recv()
        if what == "end":
            return values[0], values[1]
        getattr(self.listener, what)(*values)
        return None

    def end(self) -> None:
        """Wait until the process has ended, with what it still says unheard, and kill it if it does not."""
        deadline = time.monotonic() + _PATIENCE
        while self.process.is_alive() and time.monotonic() < deadline:
            try:
                if self.connection.poll(0.1) and self.connection.recv()[0] == "end":
                    break
            except (EOFError, OSError):
                self.process.join(0.1)
        self.connection.close()  # with which a process that waits for a job ends
        self.process.join(max(1.0, deadline - time.monotonic()))
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, one_thread: bool) -> None:
    """Do the jobs that come, until the other end is closed."""
    import torch

    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C goes to the first process alone, which says when to end
    if one_thread:
        torch.set_num_threads(1)
    told = _Teller(connection)
    with suppress(EOFError, OSError):
        while True:
            job: Job = connection.recv()
            try:
                end: tuple[Results | None, str] = (carry_out(job, told), "")
            except KsurgeonError as error:
                end = (None, str(error))
            except Exception as error:
                end = (None, f"{type(error).__name__}: {error}")
            connection.send(("end", *end))


class _Teller(Listener):
    """Passes on what a training tells; if nobody listens any more, the training ends with a checkpoint."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self._last, self._alone = connection, 0.0, False

    def stage(self, name: str, total: int) -> None:
        self._send("stage", name, total)

    def part(self, done: int, what: str) -> None:
        if self._is_time():
            self._send("part", done, what)

    def step(self, step: Step) -> None:
        if self._is_time():
            self._send("step", step)

    def evaluated(self, evaluation: Evaluation) -> None:
        self._send("evaluated", evaluation)

    def judged(self, phase: Phase) -> None:
        self._send("judged", phase)

    def note(self, text: str) -> None:
        self._send("note", text)

    def _is_time(self) -> bool:
        now = time.monotonic()
        if now - self._last < _OFTEN:
            return False
        self._last = now
        return True

    def _send(self, *message: Any) -> None:
        try:
            self.connection.send(message)
        except OSError:
            if not self._alone:
                self._alone = True
                signal.raise_signal(signal.SIGTERM)
