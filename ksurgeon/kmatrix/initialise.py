"""Starting values of the factors of a chain."""

from collections.abc import Sequence
from math import prod, sqrt

import torch
from torch import Tensor

from ksurgeon.patterns.pattern import Pattern

__all__ = ["identity_", "orthogonal_", "random_"]


@torch.no_grad()
def identity_(factors: Sequence[Tensor]) -> None:
    """Make every block the (rectangular) identity; a square chain is then the identity matrix."""
    for factor in factors:
        factor.copy_(torch.eye(*factor.shape[-2:], device=factor.device).expand_as(factor))


@torch.no_grad()
def random_(factors: Sequence[Tensor], in_features: int) -> None:
    """Draw every entry from a normal distribution so that the chain keeps the variance of its input.

    ``in_features`` is the number of entries of the chain's input that are not padding.
    """
    for factor in factors:
        factor.normal_(std=1 / sqrt(factor.shape[-1]))
    factors[0].mul_(sqrt(Pattern.of(factors[0].shape).in_features / in_features))


@torch.no_grad()
def orthogonal_(factors: Sequence[Tensor]) -> None:
    """Make every block a random (semi-)orthogonal matrix, uniformly distributed; so is a square chain."""
    for factor in factors:
        b, c = factor.shape[-2:]
        wide = torch.complex128 if factor.is_complex() else torch.float64
        normal = torch.randn(prod(factor.shape[:2]), max(b, c), min(b, c), dtype=wide, device=factor.device)
        q, r = torch.linalg.qr(normal)
        signs = torch.sgn(r.diagonal(dim1=-2, dim2=-1))
        q = q * signs[:, None, :]
        factor.copy_((q if b >= c else q.mT).reshape(factor.shape))
