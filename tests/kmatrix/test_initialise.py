import pytest
import torch

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.matrix import KMatrix

SIZES = [(64, 64), (768, 768), (116, 116), (244, 244), (64, 256), (256, 64), (37, 100)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("options", [{}, {"width": 2}, {"expansion": 2}, {"radix": 2}])
def test_random_keeps_the_variance(sizes, options):
    matrix = KMatrix(*sizes, **options)
    for factor in matrix.factors:
        variance = factor.detach().square().mean().item()
        error = 4 * (2 / factor.numel()) ** 0.5  # four standard deviations of the mean of squares
        expected = 1 / factor.shape[-1]
        if factor is matrix.factors[0]:
            expected *= matrix.patterns[0].in_features / matrix.in_features
        assert variance == pytest.approx(expected, rel=error)
        torch.nn.init.constant_(factor, expected)
    # With the variances of their entries for factors, the chain maps variances to variances.
    assert matrix(torch.ones(sizes[0])).detach().mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("n", [1, 7, 12, 64, 116])
def test_orthogonal(n, dtype):
    dense = KMatrix(n, start="orthogonal", dtype=dtype).to_dense().detach()
    torch.testing.assert_close(dense @ dense.mH, torch.eye(n, dtype=dtype))
    assert (n == 1) or (dense - torch.eye(n)).abs().max() > 0.1


@pytest.mark.parametrize("sizes", [(16, 64), (64, 16)])
def test_rectangular_orthogonal(sizes):
    dense = KMatrix(*sizes, start="orthogonal", dtype=torch.float64).to_dense().detach()
    gram = dense.T @ dense if sizes[1] > sizes[0] else dense @ dense.T
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 6, 64, 116, 244])
@pytest.mark.parametrize("options", [{}, {"width": 3}, {"expansion": 2}, {"dtype": torch.bfloat16}])
def test_identity(n, options):
    dense = KMatrix(n, start="identity", **options).to_dense().detach()
    assert torch.equal(dense, torch.eye(n, dtype=dense.dtype))


def test_starts_follow_the_seed():
    def draw(start):
        torch.manual_seed(3)
        return KMatrix(24, start=start).to_dense().detach()

    for start in ("random", "orthogonal"):
        assert torch.equal(draw(start), draw(start))
        torch.manual_seed(4)
        assert not torch.equal(draw(start), KMatrix(24, start=start).to_dense().detach())


def test_unknown_start():
    with pytest.raises(StructureError, match="random, orthogonal, identity or empty, got 'zeros'"):
        KMatrix(4, start="zeros")
