"""A process of its own that looks at one model after the other, so that none can take the survey down."""

import gc
import os
import signal
import warnings
from multiprocessing.connection import Connection
from typing import NamedTuple

from tools.survey.limits import OutOfTimeError, cpu_time, give_way, memory
from tools.survey.result import Result

__all__ = ["Task", "serve"]


class Task(NamedTuple):
    """A model to look at."""

    library: str
    name: str
    convert: bool = False


def serve(connection: Connection, seconds: int, gibibytes: float) -> None:
    """Answer each task with an empty string and then its result as JSON, until the other end is closed.

    What libraries print goes nowhere. After a model that took too long the process ends: nobody
    knows what it left behind.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the survey decides when it ends
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    warnings.simplefilter("ignore")
    give_way()
    memory(gibibytes)

    import torch

    torch.set_num_threads(1)
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        connection.send("")  # it has begun
        try:
            with cpu_time(seconds):
                result = _look(task)
        except OutOfTimeError:
            reason = f"took more than {seconds} seconds of CPU time"
            connection.send(_failed(task, reason).model_dump_json())
            return
        connection.send(result.model_dump_json())
        gc.collect()


def _look(task: Task) -> Result:
    from tools.survey.looking import look_at

    try:
        return look_at(*task)
    except Exception as error:
        return _failed(task, f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])


def _failed(task: Task, reason: str) -> Result:
    return Result(library=task.library, name=task.name, state="failed", reason=reason)
