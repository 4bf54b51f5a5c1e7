"""A worker whose models do what their names say."""

import os
import signal
import time
from multiprocessing.connection import Connection

import torch

from tools.survey import looking
from tools.survey.result import Result
from tools.survey.worker import serve


def behave(library: str, name: str, convert: bool) -> Result:
    if name == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "spins":
        while True:
            try:
                sum(range(1000))
            except Exception:  # as some libraries do
                continue
    if name == "sleeps":
        time.sleep(300)
    if name == "grows":
        torch.empty(64 << 30, dtype=torch.uint8)
    print("noise")
    return Result(library=library, name=name, state="analysed", seconds=torch.get_num_threads())


def scripted(connection: Connection, seconds: int, gibibytes: float) -> None:
    looking.look_at = behave
    serve(connection, seconds, gibibytes)
