"""A K-matrix in the place of a channel shuffle."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.lazy import HasComputed, lazy_dense
from ksurgeon.kmatrix.matrix import KMatrix, Start, like_input, multiply
from ksurgeon.kmatrix.permutation import permutation_
from ksurgeon.kmatrix.radix import Radix
from ksurgeon.kmatrix.structures import Structure
from ksurgeon.patterns.rotated import sources_of

__all__ = ["KChannelShuffle", "shuffle_permutation"]


def shuffle_permutation(channels: int, groups: int) -> tuple[int, ...]:
    """The permutation p of a channel shuffle, ``y[i] = x[p[i]]`` (Zhang et al., ShuffleNet, 2018).

    Raises:
        StructureError: ``groups`` does not divide ``channels``.
    """
    if groups < 1 or channels % groups:
        raise StructureError(f"{groups} groups do not divide {channels} channels")
    return tuple(torch.arange(channels).view(groups, -1).T.flatten().tolist())


class KChannelShuffle(HasComputed):
    """A learnable K-matrix along one dimension that starts as a channel shuffle, exactly.

    Whatever the dtype of its parameters, and under autocast too, the output has the dtype of the input,
    as the output of a shuffle has.

    ``site`` and ``replaced`` are for surgery: the path of the shuffle that was replaced, and the modules, if
    any, that did it, by their names.

    Args:
        channels: size of the dimension that is shuffled.
        groups: groups of the shuffle; with ``permutation`` only kept for the record.
        dim: the dimension that is shuffled.
        permutation: any permutation to start from, ``y[i] = x[permutation[i]]``.
        start: "exact", or as in ``KMatrix``.
        width, expansion, radix, structure, device, dtype: as in ``KLinear``.

    Raises:
        StructureError: groups that do not divide the channels, or no permutation.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        dim: int = 1,
        *,
        permutation: Sequence[int] | None = None,
        start: Start | str = "exact",
        width: int = 1,
        expansion: int = 1,
        radix: Radix | Sequence[int] = "auto",
        structure: Structure | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = self.out_features = channels
        self.groups, self.dim = groups, dim
        self.site = ""
        self.replaced: tuple[tuple[str, nn.Module], ...] = ()
        self.permutation = (
            tuple(permutation) if permutation is not None else shuffle_permutation(channels, groups)
        )
        self.matrix = KMatrix(
            channels,
            width=width,
            expansion=expansion,
            radix=radix,
            structure=structure,
            start="empty" if start == "exact" else start,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )
        if self.matrix.side is not None:
            raise StructureError(f"a shuffle is one chain, without a low-rank branch; got {structure}")
        if start == "exact" and not self.matrix.factors[0].is_meta:
            permutation_(self.matrix, torch.tensor(self.permutation))

    @property
    def weight(self) -> Tensor:
        """The dense matrix ``(channels, channels)``, computed anew, differentiable, not to be written to."""
        shape = (self.in_features, self.out_features)
        return lazy_dense(self.matrix.to_dense, shape, self.matrix.like)

    def forward(self, x: Tensor) -> Tensor:
        """Map dimension ``dim`` of ``x``; shape, dtype and memory format stay."""
        matrix: KMatrix = self._modules["matrix"]  # type: ignore[assignment]
        y = matrix._at_once(x, self.dim)
        if y is None:
            y = _multiply(x, matrix._held(), self.dim, self.in_features, matrix._padded)
        return like_input(y, x)

    def extra_repr(self) -> str:
        return f"channels={self.in_features}, groups={self.groups}, dim={self.dim}"


@torch.fx.wrap
def _multiply(x: Tensor, factors: Sequence[Tensor], dim: int, channels: int, padded: bool) -> Tensor:
    if not torch.is_autocast_enabled(x.device.type):
        if sources_of(factors)[0].dtype is not x.dtype:
            factors = tuple(factor.to(x.dtype) for factor in factors)
        return multiply(x, factors, dim, 1, channels, channels, padded)
    with torch.autocast(x.device.type, enabled=False):
        return multiply(x, tuple(factor.to(x.dtype) for factor in factors), dim, 1, channels, channels)
