"""Smooth random fields whose entries were shuffled, and models that take them."""

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["GRID", "TRUTH", "classifier", "mixer", "shuffled"]

GRID = (8, 8)
TRUTH = torch.randperm(64, generator=torch.Generator().manual_seed(0))


def shuffled(examples: int = 2000, seed: int = 1) -> Tensor:
    """``(examples, 1, 8, 8)``, with a mean that is large beside the spread, shuffled by ``TRUTH``."""
    places = torch.from_numpy(np.indices(GRID).reshape(2, -1).T.astype(float))
    root = torch.linalg.cholesky(torch.exp(-torch.cdist(places, places) / 5))
    random = torch.Generator().manual_seed(seed)
    data = 100 + torch.randn(examples, 64, generator=random, dtype=torch.float64) @ root.mT
    return data[:, TRUTH].view(examples, 1, *GRID).float()


def batches() -> Tensor:
    """What the command line takes as data: ``tests.fields:batches``."""
    return shuffled()


def classifier() -> nn.Module:
    """A linear model behind a flatten."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


def mixer() -> nn.Module:
    """The entries are channels of a map whose positions are further examples."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(64, 6, 3), nn.Tanh()).eval()
