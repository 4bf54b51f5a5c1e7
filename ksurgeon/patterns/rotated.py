"""Factors that are computed from other tensors, as those whose blocks are rotations are from angles."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ksurgeon.patterns.pattern import Pattern

__all__ = ["Computed", "Rotated", "patterns_of", "rotated", "sources_of"]


class Computed:
    """Marks factors that are computed from ``sources``."""

    __slots__ = ()


class Rotated(Computed, Sequence[Tensor]):
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


def sources_of(factors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors that factors depend on: themselves, but for those that are computed."""
    return factors.sources if isinstance(factors, Computed) else factors  # type: ignore[attr-defined]


def patterns_of(factors: Sequence[Tensor]) -> tuple[Pattern, ...]:
    """The patterns of factors, which need not be computed for that."""
    known: tuple[Pattern, ...] | None = getattr(factors, "patterns", None)
    return known or tuple(Pattern.of(factor.shape) for factor in factors)
