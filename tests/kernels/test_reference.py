import pytest
import torch

from ksurgeon.kernels.reference import apply_chain, apply_factor
from ksurgeon.kmatrix.matrix import KMatrix

SHAPES = [(1, 1, 1, 1), (2, 3, 4, 5), (3, 1, 2, 2), (1, 6, 5, 3), (4, 2, 1, 6)]


def factor_matrix(factor):
    """y[a, o, d] = Σ_i w[a, d, o, i] · x[a, i, d], entry by entry."""
    a, d, b, c = factor.shape
    dense = factor.new_zeros(a, b, d, a, c, d)
    for i in range(a):
        for j in range(d):
            dense[i, :, j, i, :, j] = factor[i, j]
    return dense.reshape(a * b * d, a * c * d)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_factor(shape, dtype):
    factor = torch.randn(shape, dtype=dtype)
    dense = factor_matrix(factor)
    x = torch.randn(dense.shape[1], 4, dtype=dtype)
    torch.testing.assert_close(apply_factor(x, factor), dense @ x)
    rows = torch.randn(4, dense.shape[1], dtype=dtype)
    torch.testing.assert_close(apply_factor(rows.T, factor), dense @ rows.T)


def test_a_chain_along_every_dimension():
    factors = [
        torch.randn(2, 3, 4, 5).double(),
        torch.randn(3, 2, 2, 4).double(),
        torch.randn(4, 1, 7, 3).double(),
    ]
    dense = factor_matrix(factors[2]) @ factor_matrix(factors[1]) @ factor_matrix(factors[0])
    x = torch.randn(3, 30, 2, 30).double()
    for dim in (1, 3, -1):
        for given in (x, x.transpose(1, 3), x[:, :, :1], x.flip(0)):
            wanted = torch.tensordot(given, dense, dims=([dim], [1])).movedim(-1, dim)
            torch.testing.assert_close(apply_chain(given, factors, dim), wanted)
    torch.testing.assert_close(apply_chain(x[0, :, 0, 0], factors, 0), dense @ x[0, :, 0, 0])


@pytest.mark.parametrize(("shape", "dim"), [((0, 6), 1), ((6, 0), 0), ((2, 6, 0), 1), ((0, 2, 6), -1)])
def test_no_vectors(shape, dim):
    y = apply_chain(torch.empty(shape), [torch.ones(2, 1, 5, 3)], dim)
    assert y.shape == tuple(10 if size == 6 else size for size in shape)


def test_gradients():
    factors = [
        torch.randn(2, 2, 3, 2).double().requires_grad_(),
        torch.randn(1, 4, 2, 3).double().requires_grad_(),
    ]
    x = torch.randn(2, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *f: apply_chain(x, f, -1), (x, *factors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_dtypes(dtype):
    factor = torch.randn(2, 3, 4, 5, dtype=dtype)
    x = torch.randn(30, 2, dtype=dtype)
    y = apply_factor(x, factor)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), factor_matrix(factor.double()) @ x.double(), rtol=2e-2, atol=8e-2)


@pytest.mark.parametrize("dim", [1, -1, 0])
def test_a_permutation_moves_what_is_not_finite_and_nothing_else(dim):
    matrix = KMatrix.from_permutation(torch.arange(12).flip(0))
    x = torch.randn(12, 12, 12)
    x[3, 5, 7], x[1, 2, 3] = torch.inf, torch.nan
    bias = torch.randn(12)
    with torch.no_grad():
        factors = list(matrix.factors)
        torch.testing.assert_close(apply_chain(x, factors, dim), x.flip(dim), rtol=0, atol=0, equal_nan=True)
        added = x.flip(dim).movedim(dim, -1).add(bias).movedim(-1, dim)
        y = apply_chain(x, factors, dim, bias, "relu")
        torch.testing.assert_close(y, added.relu(), rtol=0, atol=0, equal_nan=True)
        factors[0].data[0, 0] *= 2  # no permutation any more, whatever its version counter says
        assert not torch.equal(apply_chain(x.nan_to_num(0, 0), factors, dim), x.nan_to_num(0, 0).flip(dim))
    assert apply_chain(x, factors, dim).requires_grad
