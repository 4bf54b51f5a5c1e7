"""Other factors of the same product: those of least norm, which a training changes evenly."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ksurgeon.patterns.pattern import Pattern

__all__ = ["balance_"]

_UNEVEN = 1e-4  # relative; what is nearer to balance is left as it is, bit for bit
_LEAST = 1e-3  # of the largest singular value: a direction of less is still given, so that it can be learned

_NOTHING = 1e-9  # of the norms: a product that is zero up to rounding


@torch.no_grad()
def balance_(factors: Sequence[Tensor], sweeps: int = 4) -> None:
    """Change factors in place towards the least sum of squared entries with the same product.

    Between two neighbours ``B A = (B G⁻¹)(G A)`` for any invertible G that keeps their patterns: a number for
    every entry of the vector between them, a whole matrix for every ``s`` entries that blocks of both have in
    common, as in the middle of ``B B*``. The norm is least where ``A Aᴴ = Bᴴ B``: for ``B A = U S Vᴴ`` at
    ``A = S^½ Vᴴ``, ``B = U S^½``. Fits end far from there, and a step of Adam, which is as long for
    every entry, then changes the product by as much as its own norm.

    Args:
        factors: in the order they are applied, ``(a, d, b, c)``; best in double precision. Blocks with
            entries that are not finite stay as they are.
        sweeps: from the first to the last and back.
    """
    pairs = list(pairwise(factors))
    for first, second in (pairs + pairs[::-1]) * sweeps:
        _balance_pair(first, second)


def _balance_pair(first: Tensor, second: Tensor) -> None:
    (a1, b1, c1, d1), (a2, b2, c2, d2) = Pattern.of(first.shape), Pattern.of(second.shape)
    low, high = max(d1, d2), min(b1 * d1, c2 * d2)
    nested = not (low % d1 or low % d2 or b1 * d1 % high or c2 * d2 % high or high % low)
    shared = high // low if nested else 1
    if not 1 < shared <= min(c1, b2):
        low, high, shared = 1, 1, 1
    outer = a1 * b1 * d1 // high
    # (outer, low, shared, c1) and (outer, low, b2, shared)
    given = first.permute(0, 2, 1, 3).reshape(outer, shared, low, c1).transpose(1, 2)
    taken = second.permute(0, 3, 1, 2).reshape(outer, shared, low, b2).permute(0, 2, 3, 1)
    moments = given @ given.mH, taken.mH @ taken
    size = [torch.linalg.matrix_norm(moment) for moment in moments]
    uneven = torch.linalg.matrix_norm(moments[0] - moments[1]) > _UNEVEN * (size[0] + size[1])
    uneven &= (size[0] > 0) & (size[1] > 0) & size[0].isfinite() & size[1].isfinite()
    if not bool(uneven.any()):
        return
    made = (_scaled if shared == 1 else _split)(given[uneven], taken[uneven])
    given, taken = given.clone(), taken.clone()
    given[uneven], taken[uneven] = made
    first.copy_(given.transpose(1, 2).reshape(a1, b1, d1, c1).permute(0, 2, 1, 3))
    second.copy_(taken.permute(0, 3, 1, 2).reshape(a2, c2, d2, b2).permute(0, 2, 3, 1))


def _scaled(given: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    scale = (torch.linalg.matrix_norm(taken) / torch.linalg.matrix_norm(given)).sqrt()[..., None, None]
    return given * scale, taken / scale


def _split(given: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    left, upper = torch.linalg.qr(taken)
    right, lower = torch.linalg.qr(given.mH)
    u, values, v = torch.linalg.svd(upper @ lower.mH)
    size = torch.linalg.matrix_norm(given) * torch.linalg.matrix_norm(taken)
    alive = (values[..., 0] > _NOTHING * size)[..., None, None]
    root = values.clamp(min=_LEAST * values[..., :1]).sqrt()
    new_given, new_taken = root[..., None] * (v @ right.mH), left @ u * (values / root)[..., None, :]
    return torch.where(alive, new_given, given), torch.where(alive, new_taken, taken)
