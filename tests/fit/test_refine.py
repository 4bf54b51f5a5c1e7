import pytest
import torch

from ksurgeon.fit.refine import product, refine, relative_error
from ksurgeon.kmatrix.matrix import KMatrix

SIZES = [(12, 12, {}), (24, 96, {}), (96, 24, {"width": 2}), (37, 50, {}), (12, 18, {"groups": 3})]


@pytest.mark.parametrize(("in_features", "out_features", "options"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_product_is_the_matrix(in_features, out_features, options, dtype, kronecker):
    matrix = KMatrix(in_features, out_features, dtype=dtype, **options)
    torch.testing.assert_close(product(list(matrix.factors)).detach(), kronecker(list(matrix.factors)))


@pytest.mark.parametrize(("in_features", "out_features", "options"), SIZES)
def test_error_is_of_the_cropped_matrix(in_features, out_features, options):
    matrix = KMatrix(in_features, out_features, dtype=torch.float64, **options)
    target = torch.randn(out_features, in_features, dtype=torch.float64)
    dense = matrix.to_dense().detach()
    expected = ((dense - target).norm() / target.norm()).item()
    factors = [f.detach() for f in matrix.factors]
    if matrix.groups > 1:
        groups = matrix.groups
        blocks = target.unflatten(1, (groups, -1)).unflatten(0, (groups, -1))
        target = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)
        expected = ((dense - torch.block_diag(*target)).norm() / target.norm()).item()
    assert relative_error(factors, target) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize(("in_features", "out_features", "options"), SIZES[:4])
def test_refining_a_disturbed_matrix_finds_back(in_features, out_features, options, dtype):
    matrix = KMatrix(in_features, out_features, dtype=dtype, **options)
    factors = [f.detach() for f in matrix.factors]
    target = product(factors)[:out_features, :in_features]
    factors = [f / target.abs().square().mean().sqrt() ** (1 / len(factors)) for f in factors]
    target = product(factors)[:out_features, :in_features]
    disturbed = [f + 0.05 * torch.randn_like(f) for f in factors]
    kept = [f.clone() for f in disturbed]
    before = relative_error(disturbed, target)
    counted = []
    refined = refine(disturbed, target, 100, before, on_step=lambda *step: counted.append(step))
    assert relative_error(refined, target) < before / 5
    assert all(torch.equal(a, b) for a, b in zip(disturbed, kept, strict=True))
    assert counted == [(step, 100) for step in range(1, 101)]
