"""Parameters of K-modules in ``torch.utils.swap_tensors``, and in conversions that swap."""

import functools
import weakref
from typing import TYPE_CHECKING

from torch import utils  # torch itself is not yet whole

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["register_with_swap_tensors"]


def register_with_swap_tensors() -> None:
    """Let tensors be swapped after a product: PyTorch refuses those that somebody refers to weakly, as the
    kernels do with factors whose packed weights they keep. These are packed anew after a swap."""
    original = utils.swap_tensors

    @functools.wraps(original)
    def swap_tensors(t1: "Tensor", t2: "Tensor") -> None:
        for tensor in (t1, t2):
            _forget(tensor)
        original(t1, t2)

    utils.swap_tensors = swap_tensors


def _forget(tensor: "Tensor") -> None:
    """Tell the kernels what they are told when a factor dies."""
    for reference in weakref.getweakrefs(tensor):
        callback = reference.__callback__
        if callback is not None and getattr(callback, "__module__", "").startswith("ksurgeon.kernels."):
            callback(reference)
