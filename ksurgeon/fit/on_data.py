"""Fit a layer's matrix to what a dense layer does on the inputs that it gets."""

import torch
from torch import Tensor

from ksurgeon.errors import StructureError
from ksurgeon.fit.fitting import fit_
from ksurgeon.kmatrix.structured import StructuredMatrix

__all__ = ["fit_on_data_"]


@torch.no_grad()
def fit_on_data_(
    matrix: StructuredMatrix,
    bias: Tensor | None,
    weight: Tensor,
    old_bias: Tensor | None,
    rows: Tensor | None,
) -> None:
    """Fit ``matrix`` to ``weight``, and let ``bias`` make up for the mean error.

    Args:
        matrix: its values are overwritten.
        bias: ``(out_features,)``, overwritten; None where there is none.
        weight: ``(out_features, in_features)``.
        old_bias: the dense layer's bias; None where there is none.
        rows: inputs of the layer, ``(n, in_features)``; None fits the weight alone.

    Raises:
        StructureError: rows of another size, or none.
        WeightsError: a weight or rows with NaN or infinite entries.
    """
    inputs, mean = None, None
    if rows is not None:
        if rows.shape[-1] != matrix.in_features or not len(rows):
            raise StructureError(
                f"data must hold vectors of {matrix.in_features} entries, at least one; got {len(rows)} of "
                f"{rows.shape[-1]}"
            )
        inputs = rows.detach().to(weight.device, torch.promote_types(rows.dtype, torch.float64))
        if old_bias is not None and len(rows) > 1:
            mean = inputs.mean(0)
            inputs = inputs - mean
        inputs = inputs.mT @ inputs.conj() / len(rows)
    fit_(matrix, weight, moment=inputs)
    if bias is None or old_bias is None:
        return
    bias.copy_(old_bias)
    if mean is not None:
        error = weight.to(mean.dtype) - matrix.to_dense().to(mean.dtype)
        bias.add_((error @ mean).to(bias.dtype))
