"""The way a chain is computed, by the device it is on."""

import os
from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

from ksurgeon.kernels.cuda import run, trial
from ksurgeon.kernels.cuda.pack import Way
from ksurgeon.kernels.cuda.trial import Direction

__all__ = ["way_of"]


@lru_cache(maxsize=1)
def _kernels_are_asked_for() -> bool:
    return os.environ.get("KSURGEON_BACKEND") == "cuda"


def way_of(direction: Direction, x: Tensor, factors: Sequence[Tensor], dim: int) -> Way:
    """What a trial found on the GPU; the kernels, untried, where ``KSURGEON_BACKEND=cuda`` asks for them."""
    if x.is_cuda and not _kernels_are_asked_for():
        return trial.way_of(direction, x, factors, dim)
    return run.best(factors) if direction == "forward" else "steps"
