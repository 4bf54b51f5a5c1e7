"""A K-matrix in the place of a pointwise convolution."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.lazy import HasComputed, lazy_dense
from ksurgeon.kmatrix.linear import new_bias
from ksurgeon.kmatrix.matrix import Start, like_input, new_matrix
from ksurgeon.kmatrix.radix import Radix
from ksurgeon.kmatrix.structured import StructuredMatrix
from ksurgeon.kmatrix.structures import Structure
from ksurgeon.late import late

__all__ = ["KPointwiseConv"]


class KPointwiseConv(HasComputed):
    """A convolution of kernel size 1 and padding 0 whose channel map is a K-matrix.

    Takes and gives what ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d`` does, batched or not, in any memory
    format. With ``groups`` the map is block-diagonal, one K-matrix a group.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: one number, or one for each of the ``dims`` spatial dimensions.
        groups: number of groups; divides both channel counts.
        bias: whether to add a learnable bias.
        dims: number of spatial dimensions, 1, 2 or 3.
        transposed: whether ``weight`` has the layout of a transposed convolution's (stride 1).
        width, expansion, radix, structure, start, device, dtype: as in ``KLinear``.

    Raises:
        StructureError: sizes that the structure cannot have, or groups that do not divide them.
    """

    padding_mode = "zeros"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dims: int = 2,
        width: int = 1,
        expansion: int = 1,
        radix: Radix | Sequence[int] = "auto",
        structure: Structure | None = None,
        transposed: bool = False,
        start: Start = "random",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dims not in (1, 2, 3):
            raise StructureError(f"a convolution has 1, 2 or 3 spatial dimensions, got {dims}")
        self.stride = (stride,) * dims if isinstance(stride, int) else tuple(stride)
        if len(self.stride) != dims or min(self.stride) < 1:
            raise StructureError(f"stride must be {dims} numbers of at least 1, or one, got {stride}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.in_features, self.out_features = in_channels, out_channels
        self.transposed = transposed
        self.kernel_size, self.padding, self.dilation = (1,) * dims, (0,) * dims, (1,) * dims
        self.matrix: StructuredMatrix = new_matrix(
            in_channels,
            out_channels,
            width=width,
            expansion=expansion,
            radix=radix,
            structure=structure,
            groups=groups,
            start=start,
            device=device,
            dtype=dtype,
        )
        self.bias = new_bias(out_channels, in_channels // groups, device, dtype) if bias else None

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv1d | nn.Conv2d | nn.Conv3d,
        structure: Structure | None = None,
        *,
        data: Tensor | None = None,
    ) -> Self:
        """A layer fitted to a dense pointwise convolution, as ``KLinear.from_linear`` is to a linear layer.

        Args:
            conv: stays as it is; kernel size 1 and no padding.
            structure: of each group; a ``Kaleidoscope`` if left out.
            data: inputs of the layer, ``(batch, in_channels, …)`` or ``(in_channels, …)``.

        Raises:
            StructureError: a convolution that is not pointwise, sizes that the structure cannot have, or data
                of another size.
            WeightsError: weights or data with NaN or infinite entries.

        Examples:
            >>> layer = KPointwiseConv.from_conv(nn.Conv2d(64, 128, 1), ksurgeon.LowRank(16))
        """
        dims = len(conv.kernel_size)
        if (
            conv.transposed
            or conv.kernel_size != (1,) * dims
            or conv.padding not in ((0,) * dims, "valid", "same")
        ):
            raise StructureError(f"expected a convolution of kernel size 1 without padding, got {conv}")
        weight = conv.weight.detach()
        new = cls(
            conv.in_channels,
            conv.out_channels,
            conv.stride,
            conv.groups,
            conv.bias is not None,
            dims=dims,
            structure=structure,
            start="empty",
            device=weight.device,
            dtype=weight.dtype,
        )
        rows = None
        if data is not None:
            steps = [slice(None, None, step) for step in new.stride]
            kept = data[(..., *steps)]  # type: ignore[index]
            rows = kept.movedim(-dims - 1, -1).flatten(0, -2)
        blocks = weight.flatten(1).unflatten(0, (conv.groups, -1))
        late("fit_on_data_")(new.matrix, new.bias, torch.block_diag(*blocks), conv.bias, rows)
        new.matrix.requires_grad_(conv.weight.requires_grad)
        return new.train(conv.training)

    @property
    def weight(self) -> Tensor:
        """The dense kernel ``(out_channels, in_channels / groups, 1, …)``, computed as that of ``KLinear``.

        Of a transposed convolution it is ``(in_channels, out_channels / groups, 1, …)``.
        """
        sizes = (self.in_channels, self.out_channels)
        first, second = sizes if self.transposed else sizes[::-1]
        shape = (first, second // self.groups, *self.kernel_size)
        return lazy_dense(self._dense, shape, self.matrix.like)

    def _dense(self) -> Tensor:
        blocks = self.matrix.to_dense().unflatten(1, (self.groups, -1)).unflatten(0, (self.groups, -1))
        kernel = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)
        kernel = (kernel.mT if self.transposed else kernel).flatten(0, 1)
        return kernel.reshape(*kernel.shape, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, …)`` or ``(in_channels, …)`` to ``out_channels``."""
        dims = len(self.stride)
        if x.dim() not in (dims + 1, dims + 2):
            raise ValueError(
                f"expected (batch, {self.in_channels}, …) or ({self.in_channels}, …) with {dims} spatial "
                f"dimension{'s' * (dims > 1)}, got a tensor of shape {tuple(x.shape)}"
            )
        kept = x
        if max(self.stride) > 1:
            steps = [slice(None, None, step) for step in self.stride]
            kept = like_input(x[(..., *steps)], x)  # type: ignore[index]
        # As in KLinear: an attribute of a module takes as long as a small kernel.
        parameters = self._parameters
        matrix: StructuredMatrix = self._modules["matrix"]  # type: ignore[assignment]
        bias = parameters["bias"] if "bias" in parameters else self.bias  # noqa: SIM401
        return like_input(matrix.affine(kept, -dims - 1, bias), x)

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, stride={self.stride}, "
            f"groups={self.groups}, bias={self.bias is not None}"
        )
