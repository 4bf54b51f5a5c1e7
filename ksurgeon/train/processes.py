"""Devices and processes through accelerate, and signals that end a training in good order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from ksurgeon.errors import TrainingError
from ksurgeon.train.settings import Settings

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Stop", "make_accelerator", "signals"]


def make_accelerator(settings: Settings, device: str | None, tracking: str | None) -> "Accelerator":
    """What runs the training: on one device, or on what ``accelerate launch`` or ``torchrun`` set up.

    Args:
        device: "cpu" keeps off GPUs; None takes what there is.
        tracking: folder for trackers that write files.

    Raises:
        TrainingError: accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, PartialState
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise TrainingError("training needs the library accelerate: pip install 'ksurgeon[train]'") from error
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    shared: dict[str, Any] = PartialState._shared_state
    distributed = shared.get("_shared_state") or (shared and PartialState().num_processes > 1)
    AcceleratorState._reset_state(reset_partial_state=not distributed)
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if not on_cpu and torch.cuda.is_bf16_supported() else "no"
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=precision,
        log_with=list(settings.trackers) or None,
        project_dir=tracking,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


class Stop:
    """Whether a signal asked for an end, and which."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def signals() -> Iterator[Stop]:
    """Inside, the first SIGINT or SIGTERM is only noted; a second one interrupts at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.signal is not None:
            raise KeyboardInterrupt
        stop.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
