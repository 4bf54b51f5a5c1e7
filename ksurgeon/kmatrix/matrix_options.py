"""The options of ``KMatrix`` that its other constructors hand on."""

from collections.abc import Sequence
from typing import TypedDict

import torch

from ksurgeon.kmatrix.radix import Radix
from ksurgeon.kmatrix.structures import Structure

__all__ = ["MatrixOptions"]


class MatrixOptions(TypedDict, total=False):
    """As ``KMatrix`` describes them."""

    width: int
    expansion: int
    radix: Radix | Sequence[int]
    structure: Structure | None
    groups: int
    device: torch.device | str | None
    dtype: torch.dtype | None
