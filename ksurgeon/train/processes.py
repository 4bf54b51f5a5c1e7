"""Devices and processes through accelerate, and signals that end a training in good order."""

import os
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

__all__ = ["Stop", "agreed", "end_processes", "is_first_process", "make_accelerator", "signals"]

_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # of torchrun and of MPI


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints; known before any of them meet."""
    return next((os.environ[name] for name in _RANKS if name in os.environ), "0") == "0"


def device_of(device: str | None) -> torch.device:
    """The device on which a training of this process runs; ``device`` is as ``make_accelerator`` takes it."""
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def make_accelerator(settings: Settings, device: str | None, tracking: str | None) -> "Accelerator":
    """What runs the training: on one device, or on what ``accelerate launch`` or ``torchrun`` set up.

    Args:
        device: "cpu" keeps off GPUs; None takes what there is.
        tracking: folder for trackers that write files.

    Raises:
        TrainingError: accelerate is not installed, or what was asked for needs a GPU.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, PartialState
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise TrainingError("training needs the library accelerate: pip install 'ksurgeon[train]'") from error
    on_cpu = device_of(device).type == "cpu"
    shared: dict[str, Any] = PartialState._shared_state
    distributed = shared.get("_shared_state") or (shared and PartialState().num_processes > 1)
    AcceleratorState._reset_state(reset_partial_state=not distributed)
    precision = settings.precision
    if on_cpu and precision == "fp16":
        raise TrainingError(
            "precision = fp16 needs a GPU, and this training runs on the CPU; bf16 and no work there"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise TrainingError(
            "a sharded training was asked for (FSDP), and this one cannot be: accelerate leaves it out on a "
            "CPU without a word, and on GPUs evaluations need whole layers; launch it with --multi_gpu in "
            "place of --use_fsdp, which gives every process the whole model"
        )
    if precision == "auto":
        precision = "bf16" if not on_cpu and torch.cuda.is_bf16_supported() else "no"
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=precision,
        log_with=list(settings.trackers) or None,
        project_dir=tracking,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def agreed(accelerator: "Accelerator", seconds: float) -> float:
    """The mean of what every process measured, the same number in all of them."""
    if accelerator.num_processes == 1:
        return seconds
    total = accelerator.reduce(torch.tensor(seconds, device=accelerator.device)).item()
    return float(total) / accelerator.num_processes


def end_processes() -> None:
    """Say goodbye to the other processes, if there are any; no training can follow."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Stop:
    """Whether a signal asked for an end, and which."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def signals(stop: Stop) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM is only noted in ``stop``; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.signal is not None:
            raise KeyboardInterrupt
        stop.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
