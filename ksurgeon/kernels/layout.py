"""How the vectors of a tensor lie in memory, and what the result of the kernels looks like."""

import torch
from torch import Tensor

__all__ = ["FEWEST_COLUMNS", "check_memory", "in_rows", "lies_in_rows", "new_result"]

# Vectors in fewer columns than this are copied into rows: most lanes of a register would be idle.
FEWEST_COLUMNS = 8


def check_memory(tensor: Tensor, name: str) -> None:
    """Make sure that the memory of a tensor on the CPU is there.

    Raises:
        RuntimeError: it was freed, as FSDP frees parameters between uses, or cut.
    """
    if not tensor.numel():
        return
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    entries = tensor.storage_offset() + sum([(size - 1) * stride for size, stride in steps]) + 1
    found, needed = tensor.untyped_storage().nbytes(), entries * tensor.element_size()
    if found < needed:
        raise RuntimeError(
            f"the memory of {name} of shape {tuple(tensor.shape)} is not allocated: its storage has {found} "
            f"bytes, {needed} are needed. FSDP frees parameters outside the forward of the module it wraps: "
            "call that module"
        )


def lies_in_rows(x: Tensor, dim: int) -> bool:
    """Whether the vectors along ``dim`` (counted from 0) lie in rows, as channels last do."""
    return dim == x.dim() - 1 or bool(x.movedim(dim, -1).is_contiguous())


def in_rows(x: Tensor, dim: int) -> bool:
    """Whether the vectors along ``dim`` (counted from 0) are computed on as rows: where they lie so, and
    where there are few columns."""
    if lies_in_rows(x, dim):
        return True
    columns = 1
    for size in x.shape[dim + 1 :]:
        columns = columns * size
    return bool(columns < FEWEST_COLUMNS)


def new_result(x: Tensor, dim: int, out_features: int, rows: bool) -> Tensor:
    """An uninitialised result, its vectors in rows or in columns.

    It is no view: autograd lets nobody change a view in place that an operator gave, and an in-place ReLU
    behind a convolution does.
    """
    shape = list(x.shape)
    shape[dim] = out_features
    if not rows or dim == len(shape) - 1:
        return torch.empty(shape, dtype=x.dtype, device=x.device)
    strides, step = [1] * len(shape), out_features
    for other in reversed(range(len(shape))):
        if other != dim:
            strides[other] = step
            step = step * shape[other]
    return torch.empty_strided(shape, strides, dtype=x.dtype, device=x.device)
