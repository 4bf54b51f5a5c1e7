"""A model for an exporter: its chains merged, and every product plain PyTorch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ksurgeon.export.operators import kernels_for_export
from ksurgeon.find.unchanged import example_run
from ksurgeon.kernels import operators_only, reference_only
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.shuffle import KChannelShuffle
from ksurgeon.patterns.merge import merge_counts
from ksurgeon.patterns.pattern import Pattern

__all__ = ["plain"]


@contextmanager
def plain(model: nn.Module, kernels: bool = False) -> Iterator[nn.Module]:
    """Inside, the model is in eval mode, its K-matrices hold merged factors, and it calls no operator of
    ksurgeon's own, or with ``kernels`` those that its kernels run; afterwards it is as it was."""
    held: list[tuple[KMatrix, nn.Module | None, tuple[Pattern, ...]]] = []
    try:
        with torch.no_grad():
            images = {
                id(inner)
                for module in model.modules()
                if isinstance(module, (KPointwiseConv, KChannelShuffle))
                for inner in module.modules()
            }
            for matrix in (module for module in model.modules() if isinstance(module, KMatrix)):
                factors = _merged_for_kernels(matrix, id(matrix) in images) if kernels else matrix.merged()
                merged = nn.ParameterList(nn.Parameter(factor, False) for factor in factors)
                held.append((matrix, matrix._modules["factors"], matrix.patterns))
                matrix._modules["factors"] = merged
                matrix.patterns = tuple(Pattern.of(factor.shape) for factor in merged)
        with operators_only() if kernels else reference_only(), example_run(model):
            yield model
    finally:
        for matrix, kept, patterns in held:
            matrix._modules["factors"] = kept
            matrix.patterns = patterns


def _merged_for_kernels(matrix: KMatrix, columns: bool) -> list[Tensor]:
    """Neighbours multiplied out as the kernels are fastest here with many vectors."""
    factors = list(matrix._held())
    patterns = tuple(Pattern.of(factor.shape) for factor in factors)
    return merge_counts(factors, kernels_for_export().merge_counts(patterns, columns))
