"""Layers fitted to dense ones, and K-matrices in formulas."""

import pytest
import torch
from torch import nn

from ksurgeon import KLinear, KMatrix, KPointwiseConv, LowRank, Monarch
from ksurgeon.errors import StructureError, WeightsError


def flat_inputs(n=200, size=24, rank=3):
    """Inputs of few directions, around a mean."""
    return torch.randn(n, rank) @ torch.randn(rank, size) + torch.randn(size)


def error(layer, dense, x):
    with torch.no_grad():
        return float((layer(x) - dense(x)).norm() / dense(x).norm())


@pytest.mark.parametrize("bias", [True, False])
def test_from_linear(bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 36, bias=bias).eval(), flat_inputs()
    kept = linear.weight.detach().clone()
    plain = KLinear.from_linear(linear, LowRank(4))
    fitted = KLinear.from_linear(linear, LowRank(4), data=x.view(20, 10, 24))
    assert error(fitted, linear, x) < 1e-4 < error(plain, linear, x)
    assert torch.equal(linear.weight, kept) and not fitted.training and (fitted.bias is not None) == bias
    assert fitted.matrix.structure == LowRank(4) and fitted.weight.shape == linear.weight.shape
    if bias:
        assert torch.equal(plain.bias, linear.bias) and plain.bias is not linear.bias
    exact = KLinear.from_linear(linear.double(), LowRank(24))
    assert exact.weight.dtype == torch.float64 and error(exact, linear, x.double()) < 1e-9


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: nn.Conv2d(24, 36, 1, stride=2), (6, 5)),
        (lambda: nn.Conv2d(24, 36, 1, groups=2, bias=False), (6, 5)),
        (lambda: nn.Conv1d(24, 36, 1, padding="same"), (9,)),
    ],
)
def test_from_conv(make, size):
    torch.manual_seed(0)
    conv = make()
    x = flat_inputs(8 * size[0] * (size[1] if len(size) > 1 else 1)).view(8, *size, 24).movedim(-1, 1)
    plain = KPointwiseConv.from_conv(conv, LowRank(4))
    fitted = KPointwiseConv.from_conv(conv, LowRank(4), data=x)
    assert error(fitted, conv, x) < 1e-4 < error(plain, conv, x)
    assert fitted(x).shape == conv(x).shape


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: KLinear.from_linear(nn.Linear(8, 8), LowRank(9)), StructureError, "rank 9"),
        (lambda: KLinear.from_linear(nn.Linear(8, 8), data=torch.ones(3, 7)), StructureError, "8 entries"),
        (lambda: KLinear.from_linear(nn.Linear(8, 8), data=torch.ones(0, 8)), StructureError, "at least one"),
        (
            lambda: KLinear.from_linear(nn.Linear(8, 8), data=torch.full((3, 8), torch.nan)),
            WeightsError,
            "NaN",
        ),
        (lambda: KPointwiseConv.from_conv(nn.Conv2d(8, 8, 3)), StructureError, "kernel size 1"),
        (lambda: KPointwiseConv.from_conv(nn.Conv2d(8, 8, 1, padding=1)), StructureError, "without padding"),
        (lambda: KMatrix.from_dense(torch.eye(4), widht=2), TypeError, "did you mean width?"),
        (lambda: KMatrix.from_permutation([1, 0], start="empty"), TypeError, "no keyword argument start"),
    ],
)
def test_refusals(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize("sizes", [(12, 20), (20, 12)])
def test_a_matrix_in_formulas(sizes):
    matrix = KMatrix(*sizes, structure=Monarch(2) + LowRank(1), dtype=torch.float64)
    dense = matrix.to_dense()
    assert matrix.shape == dense.shape and matrix.T.shape == dense.T.shape and matrix.T.T is matrix
    torch.testing.assert_close(matrix.T.to_dense(), dense.T)
    columns, batch = torch.randn(sizes[0], 3).double(), torch.randn(2, sizes[1], 3).double()
    for left, right in [
        (matrix @ columns, dense @ columns),
        (matrix @ columns[:, 0], dense @ columns[:, 0]),
        (matrix.T @ batch, dense.T @ batch),
        (matrix.T @ batch[0, :, 0], dense.T @ batch[0, :, 0]),
        (batch.mT @ matrix, batch.mT @ dense),
        (columns.T @ matrix.T, columns.T @ dense.T),
    ]:
        torch.testing.assert_close(left, right)
    (matrix.T @ batch).sum().backward()
    assert all(parameter.grad is not None for parameter in matrix.parameters())
    with pytest.raises(TypeError):
        matrix @ 3
