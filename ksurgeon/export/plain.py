"""A model for an exporter: its chains merged, and every product plain PyTorch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ksurgeon.find.unchanged import example_run
from ksurgeon.kernels import reference_only
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.patterns import Pattern

__all__ = ["plain"]


@contextmanager
def plain(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the model is in eval mode, its K-matrices hold merged factors, and it calls no operator of
    ksurgeon's own; afterwards it is as it was."""
    held: list[tuple[KMatrix, nn.Module | None, tuple[Pattern, ...]]] = []
    try:
        with torch.no_grad():
            for matrix in (module for module in model.modules() if isinstance(module, KMatrix)):
                merged = nn.ParameterList(nn.Parameter(factor, False) for factor in matrix.merged())
                held.append((matrix, matrix._modules["factors"], matrix.patterns))
                matrix._modules["factors"] = merged
                matrix.patterns = tuple(Pattern.of(factor.shape) for factor in merged)
        with reference_only(), example_run(model):
            yield model
    finally:
        for matrix, factors, patterns in held:
            matrix._modules["factors"] = factors
            matrix.patterns = patterns
