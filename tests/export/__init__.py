"""What torch.export is asked for in tests."""

import torch


def dynamic_batch() -> tuple[dict[int, object]] | None:
    """Dynamic shapes for a model's one input; None for a PyTorch that cannot have them here.

    PyTorch 2.11 guards on the strides of a transposed tensor whose last dimension is the batch.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12):
        return None
    return ({0: torch.export.Dim("batch", min=2, max=64)},)
