"""Stacks of small matrices on all threads: PyTorch decomposes one of a stack after another."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

__all__ = ["in_parts"]

# Multiplications below which threads cost more than they save.
_LEAST = 2**24


def in_parts(function: Callable[[Tensor], Tensor], stack: Tensor, multiplications: int) -> Tensor:
    """``function`` of a stack of matrices, on the CPU of equal parts of it at once, one thread each.

    Args:
        function: of a stack ``(count, m, k)``, each matrix by itself; returns a stack of ``count``. Runs
            without gradients.
        multiplications: about how many it takes for the whole stack; small ones stay on this thread.
    """
    wanted = torch.get_num_threads()
    threads = min(wanted, len(stack))
    if threads < 2 or stack.device.type != "cpu" or multiplications < _LEAST:
        return function(stack)

    def alone(part: Tensor) -> Tensor:
        with torch.no_grad():
            return function(part)

    try:
        # The number of threads is each thread's own, and what threads begun later start with.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat(list(pool.map(alone, stack.tensor_split(threads))))
    finally:
        torch.set_num_threads(wanted)
