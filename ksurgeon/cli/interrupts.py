"""Signals that end a command: the first one is carried out, those that follow wait for the end."""

import os
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Interrupts"]


class Interrupts:
    """Inside, the first SIGINT, SIGTERM or SIGHUP interrupts, so that what was begun is cleaned up; further
    ones do not disturb that. What was ignored before, as by ``nohup``, stays ignored.

    Attributes:
        number: of the signal that came; None before.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) in (
                    signal.SIG_DFL,
                    signal.default_int_handler,
                ):
                    self._before[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            quiet = self.number is not None and number == signal.SIGINT  # until the process has ended
            signal.signal(number, signal.SIG_IGN if quiet else handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that was forked
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.number is None:
            self.number = number
            raise KeyboardInterrupt
