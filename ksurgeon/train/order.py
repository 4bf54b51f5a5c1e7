"""Which examples a training step has: a function of the seed and the step's number, so that it can go on."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["batches_by_length", "epoch_batches"]

_POOL = 64  # batches that are sorted by length together


def epoch_batches(
    numbers: Sequence[int], batch: int, seed: int, epoch: int, lengths: Tensor | None
) -> list[list[int]]:
    """Full batches of one pass in random order; with lengths, each of about equally long examples."""
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order = torch.tensor(numbers)[torch.randperm(len(numbers), generator=generator)]
    order = order[: len(numbers) // batch * batch]
    if lengths is None:
        return order.view(-1, batch).tolist()  # type: ignore[no-any-return]
    pools = order.split(_POOL * batch)
    pools = tuple(pool[lengths[pool].argsort(stable=True)] for pool in pools)
    batches = torch.cat(pools).view(-1, batch)
    return batches[torch.randperm(len(batches), generator=generator)].tolist()  # type: ignore[no-any-return]


def batches_by_length(numbers: Sequence[int], batch: int, lengths: Tensor | None) -> list[list[int]]:
    """All the examples, the shortest first, the last batch perhaps smaller."""
    order = torch.tensor(numbers, dtype=torch.long)
    if lengths is not None:
        order = order[lengths[order].argsort(stable=True)]
    return [part.tolist() for part in order.split(batch)] if len(order) else []
