"""A K-matrix in the place of ``nn.Linear``."""

from collections.abc import Sequence
from math import sqrt
from typing import Self

import torch
from torch import Tensor, nn

from ksurgeon.kmatrix.lazy import HasComputed, lazy_dense
from ksurgeon.kmatrix.matrix import Start, new_matrix
from ksurgeon.kmatrix.radix import Radix
from ksurgeon.kmatrix.structured import StructuredMatrix
from ksurgeon.kmatrix.structures import Structure
from ksurgeon.late import late

__all__ = ["KLinear"]


class KLinear(HasComputed):
    """``y = K x + bias`` with a K-matrix K; takes and gives what ``nn.Linear`` does.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        bias: whether to add a learnable bias.
        width: number w of products BB* (Dao et al., ICLR 2020, definition 2.4).
        expansion: ratio e of the K-matrix's inner size to the smaller side.
        radix: "auto", an integer, or the list of radices of a butterfly matrix.
        structure: any structure, in place of width, expansion and radix.
        parts: the map is so many K-matrices of equal sizes, one for each part of the output: a fused query,
            key and value has 3.
        transposed: whether ``weight`` is ``(in_features, out_features)``, as in transformers' ``Conv1D``.
        start: "random" (keeps the variance), "orthogonal", "identity" or "empty".
        device, dtype: of the parameters.

    Raises:
        StructureError: sizes that the structure cannot have.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        width: int = 1,
        expansion: int = 1,
        radix: Radix | Sequence[int] = "auto",
        structure: Structure | None = None,
        parts: int = 1,
        transposed: bool = False,
        start: Start = "random",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.parts, self.transposed = parts, transposed
        self.matrix: StructuredMatrix = new_matrix(
            parts * in_features,
            out_features,
            groups=parts,
            width=width,
            expansion=expansion,
            radix=radix,
            structure=structure,
            start=start,
            device=device,
            dtype=dtype,
        )
        self.bias = new_bias(out_features, in_features, device, dtype) if bias else None

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, structure: Structure | None = None, *, data: Tensor | None = None
    ) -> Self:
        """A layer fitted to a dense one, with its bias, dtype, device and training flag; a copy throughout.

        Args:
            linear: stays as it is.
            structure: any; a ``Kaleidoscope`` if left out.
            data: inputs of the layer, ``(…, in_features)``. The fit is then to the outputs on them, and the
                bias makes up for the mean error; left out, the fit is to the weight.

        Raises:
            StructureError: sizes that the structure cannot have, or data of another size.
            WeightsError: weights or data with NaN or infinite entries.

        Examples:
            >>> layer = KLinear.from_linear(nn.Linear(768, 3072), ksurgeon.Monarch(4), data=x)
        """
        weight = linear.weight.detach()
        new = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            structure=structure,
            start="empty",
            device=weight.device,
            dtype=weight.dtype,
        )
        rows = None if data is None else data.reshape(-1, data.shape[-1])
        late("fit_on_data_")(new.matrix, new.bias, weight, linear.bias, rows)
        new.matrix.requires_grad_(linear.weight.requires_grad)
        return new.train(linear.training)

    @property
    def weight(self) -> Tensor:
        """The dense matrix ``(out_features, in_features)``, differentiable, of the factors when it is read.

        It is computed anew every time; its shape, dtype and device cost nothing. Writing to it raises
        SurgeryError; ``ksurgeon.load_dense`` fits the factors to another one.
        """
        shape = (self.out_features, self.in_features)
        return lazy_dense(self._dense, shape[::-1] if self.transposed else shape, self.matrix.like)

    def _dense(self) -> Tensor:
        dense = self.matrix.to_dense()
        if self.parts > 1:
            blocks = dense.unflatten(1, (self.parts, -1)).unflatten(0, (self.parts, -1))
            dense = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0).flatten(0, 1)
        return dense.T if self.transposed else dense

    def forward(self, x: Tensor) -> Tensor:
        """Map the last dimension of ``x`` from ``in_features`` to ``out_features``."""
        parameters = (
            self._parameters
        )  # looked up here: an attribute of a module takes as long as a small kernel
        bias = parameters["bias"] if "bias" in parameters else self.bias  # noqa: SIM401
        matrix: StructuredMatrix = self._modules["matrix"]  # type: ignore[assignment]
        if self.parts > 1:
            x = torch.cat([x] * self.parts, -1)
        return matrix.affine(x, -1, bias).contiguous()

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}"


def new_bias(
    out_features: int,
    fan_in: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Parameter:
    """A bias drawn as ``nn.Linear`` and ``nn.Conv2d`` draw theirs."""
    bias = torch.empty(out_features, device=device, dtype=dtype)
    bound = 1 / sqrt(fan_in)
    real = torch.view_as_real(bias) if bias.is_complex() else bias
    nn.init.uniform_(real, -bound, bound)
    return nn.Parameter(bias)
