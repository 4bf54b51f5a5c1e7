"""Worker processes, and what becomes of a model whose worker dies or does not answer."""

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from ksurgeon.workers import cause_of_end
from tools.survey.result import Result
from tools.survey.worker import Task, serve

__all__ = ["look_at_all"]

_PATIENCE = 10  # times the CPU time that a model has
_STARTING = 600  # seconds that a process may take to begin
_MODELS = 50  # a worker looks at so many; libraries keep things
_SPAWN = multiprocessing.get_context("spawn")


class _Worker:
    """A process, and the task it is at."""

    def __init__(self, work: Callable[..., None], seconds: int, gibibytes: float) -> None:
        self.connection, other = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=work, args=(other, seconds, gibibytes), daemon=True)
        self.process.start()
        other.close()
        self.task: Task | None = None
        self.deadline, self.done = 0.0, 0
        self._patience = _PATIENCE * seconds

    def begin(self, task: Task) -> None:
        self.task, self.deadline = task, time.monotonic() + _STARTING
        self.done += 1
        self.connection.send(task)

    def has_begun(self) -> None:
        """The time that the task may take runs from now on."""
        self.deadline = time.monotonic() + self._patience

    def answer(self) -> str | None:
        """What it says: nothing when it begins, then the result; None if the process ended without one."""
        try:
            answer: str = self.connection.recv()
        except (EOFError, OSError):
            return None
        return answer

    def end(self) -> int:
        """Stop the process; returns its exit status."""
        self.connection.close()
        self.process.join(timeout=1)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode or 0


def look_at_all(
    tasks: Iterable[Task],
    *,
    workers: int,
    seconds: int,
    gibibytes: float,
    work: Callable[..., None] = serve,
) -> Iterator[Result]:
    """Results as they come, one for every task, whatever becomes of the process that works on it.

    Args:
        tasks: models to look at.
        workers: processes, each with one thread.
        seconds: CPU time that one model may take.
        gibibytes: memory that one process may take.
        work: what a process runs: it is given a connection, the seconds and the gibibytes.
    """
    waiting = deque(tasks)
    count = min(workers, len(waiting))
    busy: dict[Any, _Worker] = {}
    idle: list[_Worker] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < count:
                worker = idle.pop() if idle else _Worker(work, seconds, gibibytes)
                if not worker.process.is_alive():  # killed while it waited
                    worker.end()
                    continue
                busy[worker.connection] = worker
                worker.begin(waiting.popleft())
            for connection in wait(list(busy), timeout=1.0):
                assert isinstance(connection, Connection)
                worker = busy[connection]
                answer = worker.answer()
                if answer == "":
                    worker.has_begun()
                    continue
                del busy[connection]
                yield _collect(worker, answer, idle)
            for worker in list(busy.values()):
                if time.monotonic() > worker.deadline:
                    del busy[worker.connection]
                    worker.process.kill()
                    worker.end()
                    yield _failed(worker, f"did not answer for {_PATIENCE * seconds} seconds")
    finally:
        for worker in [*busy.values(), *idle]:
            worker.process.kill()
            worker.end()


def _collect(worker: _Worker, answer: str | None, idle: list[_Worker]) -> Result:
    """The worker's result, or what it died of; a worker that may go on waits in ``idle``."""
    if answer is None:
        return _failed(worker, cause_of_end(worker.end()))
    result = Result.model_validate_json(answer)
    assert worker.task is not None
    if result.state != "analysed" or worker.task.convert or worker.done >= _MODELS:
        worker.end()
    else:
        idle.append(worker)
    return result


def _failed(worker: _Worker, reason: str) -> Result:
    assert worker.task is not None
    return Result(library=worker.task.library, name=worker.task.name, state="failed", reason=reason)
