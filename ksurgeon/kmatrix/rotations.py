"""Factors computed from angles: their blocks are rotations, with a diagonal in the middle of every BB*."""

from collections.abc import Iterator, Sequence
from math import tau
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.patterns import Pattern
from ksurgeon.kmatrix.transposed import Transposed

__all__ = ["Rotated", "Rotations", "patterns_of", "refuse_to_write", "rotated", "sources_of"]


_NAMES = ("angles", "diagonal")


class Rotated(Sequence[Tensor]):
    """The factors that ``rotated`` gives, computed whenever they are looked at.

    Kernels that keep what they make of factors look at ``sources`` to see whether it is still good, and need
    no factors then.
    """

    __slots__ = ("patterns", "sources")

    def __init__(self, sources: tuple[Tensor, Tensor], patterns: tuple[Pattern, ...]) -> None:
        self.sources, self.patterns = sources, patterns

    @property
    def sizes(self) -> list[int]:
        """The patterns as an operator takes them."""
        return [size for pattern in self.patterns for size in pattern]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(rotated(*self.sources, self.patterns))

    def __getitem__(self, number: int) -> Tensor:  # type: ignore[override]
        return rotated(*self.sources, self.patterns)[number]

    def __len__(self) -> int:
        return len(self.patterns)


class Rotations(nn.Module):
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
        from ksurgeon.kmatrix.lazy import ComputedDense

        return (factor.as_subclass(ComputedDense) for factor in rotated(*self.sources, self.patterns))

    def __getitem__(self, number: int) -> Tensor:
        return list(self)[number]

    def __len__(self) -> int:
        return len(self.patterns)

    def extra_repr(self) -> str:
        return f"{self.angles.numel()} angles, {self.diagonal.numel()} diagonal entries"


def rotated(angles: Tensor, diagonal: Tensor, patterns: Sequence[Pattern]) -> tuple[Tensor, ...]:
    """The factors ``(a, d, b, c)`` of ``Rotations``, differentiable; in single precision inside, at least."""
    exact = torch.promote_types(angles.dtype, torch.float32)
    wide, size = angles.to(exact), patterns[0].in_features
    factors: dict[int, Tensor] = {}
    start = 0
    for radix in sorted({pattern.b for pattern in patterns}):
        places = [place for place, pattern in enumerate(patterns) if pattern.b == radix]
        shape = len(places), size // radix, radix * (radix - 1) // 2
        end = start + shape[0] * shape[1] * shape[2]
        blocks = _blocks(wide[start:end].view(shape), radix)
        factors |= {k: block.view(patterns[k].shape) for k, block in zip(places, blocks, strict=True)}
        start = end
    half = len(patterns) // (2 * len(diagonal))
    for number, entries in enumerate(diagonal.to(exact)):
        place = (2 * number + 1) * half - 1
        a, b, _, d = patterns[place]
        factors[place] = factors[place] * entries.view(a, b, d).transpose(1, 2).unsqueeze(-1)
    return tuple([factors[place].to(angles.dtype) for place in range(len(patterns))])


def _blocks(angles: Tensor, radix: int) -> Tensor:
    """Rotations ``(…, radix, radix)`` from ``(…, radix (radix − 1) / 2)`` angles."""
    cos, sin = angles.cos(), angles.sin()
    entries = torch.stack([cos, -sin, sin, cos], -1)
    if radix == 2:
        return entries.unflatten(-1, (2, 2)).squeeze(-3)
    turns = [(turn, first) for turn in range(radix) for first in range(turn % 2, radix - 1, 2)]
    places = [((t * radix + k + i) * radix) + k + j for t, k in turns for i in (0, 1) for j in (0, 1)]
    eye = torch.eye(radix, dtype=angles.dtype, device=angles.device)
    rounds = eye.repeat(*angles.shape[:-1], radix, 1, 1).flatten(-3)
    rounds = rounds.index_copy(
        -1, torch.tensor(places, dtype=torch.long, device=angles.device), entries.flatten(-2)
    )
    rounds = rounds.unflatten(-1, (radix, radix, radix))
    while (count := rounds.shape[-3]) > 1:  # neighbours multiplied, the later one from the left
        pairs = rounds[..., 1::2, :, :] @ rounds[..., : count - 1 : 2, :, :]
        rounds = pairs if count % 2 == 0 else torch.cat([pairs, rounds[..., -1:, :, :]], -3)
    return rounds.squeeze(-3)


_COMPUTED = frozenset({Rotated, Rotations, Transposed})


def sources_of(factors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors that factors depend on: themselves, but for those that are computed."""
    return factors.sources if type(factors) in _COMPUTED else factors  # type: ignore[attr-defined]


def patterns_of(factors: Sequence[Tensor]) -> tuple[Pattern, ...]:
    """The patterns of factors, which need not be computed for that."""
    if type(factors) is Rotated or type(factors) is Transposed:
        return factors.patterns
    return tuple(Pattern.of(factor.shape) for factor in factors)


def refuse_to_write(what: str) -> NoReturn:
    """Say that the factors of a matrix are computed.

    Raises:
        StructureError: always.
    """
    raise StructureError(
        f'{what} writes to factors, and those of parametrization = "orthogonal" are computed from angles; '
        'use parametrization = "free"'
    )
