"""Products with an int8 copy of a floating weight, which is made anew when the weight changes."""

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ksurgeon.kernels.cpu.int8 import STORED, multiplied
from ksurgeon.kernels.cpu.native import Guard
from ksurgeon.kernels.cpu.pack import comparison_of
from ksurgeon.kernels.cpu.quads import Quads
from ksurgeon.kernels.layout import check_memory
from ksurgeon.kernels.rounding import rounded

__all__ = ["linear"]


class _Copy:
    """A weight ``(out, in)`` in the library's form, or None for one that is not finite."""

    def __init__(self, weight: Tensor) -> None:
        memory = weight.detach()
        check_memory(memory, "the weight")
        self._state = _state_of(weight)
        guard = Guard([memory], 2 if weight.is_inference() else comparison_of(memory.nbytes))
        finite = bool(memory.isfinite().all())
        self.chain = Quads([[rounded(memory[None, None], memory.dtype)]], guard) if finite else None

    def matches(self, weight: Tensor) -> bool:
        """Whether the weight is the one it was made from, as far as its version tells."""
        return self._state == _state_of(weight)


def _state_of(weight: Tensor) -> tuple[object, ...]:
    return weight.data_ptr(), weight.shape, None if weight.is_inference() else weight._version


_COPIES = WeakTensorKeyDictionary()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """``F.linear`` of plain contiguous tensors on the CPU, which fit, with vectors quantized as they come;
    None where that cannot be had: another dtype than float32, bfloat16 or float16, a weight that is not
    finite or that another thread is writing to.

    Raises:
        MemoryError: there is no memory for the intermediate vectors.
        RuntimeError: the memory of an argument has been freed.
    """
    if x.dtype not in STORED or not weight.is_contiguous():
        return None
    for _ in range(2):
        copy = _COPIES.get(weight)
        if copy is None or not copy.matches(weight):
            copy = _COPIES[weight] = _Copy(weight)
        if copy.chain is None:
            return None
        y = multiplied(copy.chain, x, -1, bias, 0)
        if y is not None:
            return y
        del _COPIES[weight]  # it has changed behind the back of its version counter
    return None
