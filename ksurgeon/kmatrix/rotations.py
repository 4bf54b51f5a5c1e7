"""Factors computed from angles: their blocks are rotations, with a diagonal in the middle of every BB*."""

from collections.abc import Iterator, Sequence
from math import tau
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.lazy import ComputedDense
from ksurgeon.patterns.pattern import Pattern
from ksurgeon.patterns.rotated import Computed, Rotated, rotated

__all__ = ["Rotations", "refuse_to_write"]


_NAMES = ("angles", "diagonal")


class Rotations(Computed, nn.Module):
    """The factors of ``(O₂ D O₁)^w``: O₁ and O₂ are butterflies whose blocks are rotations, D is diagonal.

    Dao et al. (ICLR 2020) train ShuffleNets by such angles. A block of size r is a product of r(r−1)/2
    rotations of two neighbouring entries each, in r rounds, which give every rotation of r entries (Clements
    et al., "Optimal design for universal multiport interferometers", 2016). It gives the factors by their
    indices, and they are not to be written to.

    Args:
        patterns: of the factors of ``(BB*)^width``, in the order they are applied; all square.
        width: number of diagonals.
        device, dtype: of the parameters; a real dtype.

    Attributes:
        angles: those of all blocks, ordered by radix, then by factor, block and round.
        diagonal: ``(width, size)``.
    """

    angles: nn.Parameter
    diagonal: nn.Parameter

    def __init__(
        self,
        patterns: tuple[Pattern, ...],
        width: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if (dtype or torch.get_default_dtype()).is_complex:
            raise StructureError(
                f'parametrization = "orthogonal" is real, got {dtype}; use parametrization = "free"'
            )
        self.patterns = patterns
        count, size = sum(pattern.rotations for pattern in patterns), patterns[0].in_features
        self.angles = nn.Parameter(torch.empty(count, device=device, dtype=dtype))
        self.diagonal = nn.Parameter(torch.empty(width, size, device=device, dtype=dtype))

    @property
    def sources(self) -> tuple[Tensor, Tensor]:
        """What the factors are computed from."""
        return self.angles, self.diagonal

    def current(self) -> Sequence[Tensor]:
        """The factors as they count in a call; where no gradients are wanted, computed when needed."""
        held: Any = self._parameters  # the attributes are slow
        sources: tuple[Tensor, Tensor] = self.sources if tuple(held) != _NAMES else tuple(held.values())
        if torch.is_grad_enabled() and (sources[0].requires_grad or sources[1].requires_grad):
            return rotated(*sources, self.patterns)
        return Rotated(sources, self.patterns)

    @torch.no_grad()
    def reset_parameters(self, start: str) -> None:
        """Draw the angles anew ("random", "orthogonal"), or make the product the identity.

        The diagonal is that of the identity, or "random", of the normal distribution, as the paper's.
        """
        if start == "empty":
            return
        if start == "identity":
            self.angles.zero_()
        else:
            self.angles.uniform_(0, tau)
        if start == "random":
            self.diagonal.normal_()
        else:
            self.diagonal.fill_(1)

    def __iter__(self) -> Iterator[Tensor]:
        return (factor.as_subclass(ComputedDense) for factor in rotated(*self.sources, self.patterns))

    def __getitem__(self, number: int) -> Tensor:
        return list(self)[number]

    def __len__(self) -> int:
        return len(self.patterns)

    def extra_repr(self) -> str:
        return f"{self.angles.numel()} angles, {self.diagonal.numel()} diagonal entries"


def refuse_to_write(what: str) -> NoReturn:
    """Say that the factors of a matrix are computed.

    Raises:
        StructureError: always.
    """
    raise StructureError(
        f'{what} writes to factors, and those of parametrization = "orthogonal" are computed from angles; '
        'use parametrization = "free"'
    )
