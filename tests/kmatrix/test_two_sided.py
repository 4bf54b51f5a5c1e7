"""Low ranks weighed on both sides."""

import pytest
import torch

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.fit.two_sided import TwoSided, low_rank_
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import LowRank, Monarch


@pytest.mark.parametrize(("groups", "rows", "columns"), [(1, 12, 20), (1, 20, 12), (3, 8, 8)])
@pytest.mark.parametrize("weighed", [False, True])
def test_no_other_low_rank_is_better(groups, rows, columns, weighed):
    torch.manual_seed(0)
    draw = {"dtype": torch.float64}
    blocks = torch.randn(groups, rows, columns, **draw)
    root = torch.randn(groups, columns, columns, **draw)
    slopes = torch.randn(groups, 2 * rows, rows, **draw) * torch.logspace(0, -2, rows, **draw)
    terms = TwoSided.of(blocks, root, slopes if weighed else None)
    scale = torch.eye(rows, **draw).expand(groups, -1, -1)
    if weighed:
        gram = slopes.mT @ slopes
        scale = torch.linalg.cholesky(
            gram + 1e-3 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(rows, **draw)
        ).mT
    for rank in (1, 3, 7):
        matrix = KMatrix(groups * columns, groups * rows, structure=LowRank(rank=rank), groups=groups, **draw)
        low_rank_(matrix, terms)
        with torch.no_grad():
            dense = matrix.to_dense().unflatten(0, (groups, rows)).unflatten(2, (groups, columns))
        change = dense.diagonal(dim1=0, dim2=2).movedim(-1, 0) - blocks
        torch.testing.assert_close((change @ root).square().sum(), terms.errors()[rank])
        torch.testing.assert_close((slopes @ change @ root).square().sum(), terms.errors(slopes)[rank])
        harm = (scale @ change @ root).square().sum()
        best = torch.linalg.svdvals(scale @ blocks @ root)[:, rank:].square().sum()
        torch.testing.assert_close(harm, best)
    assert terms.errors()[-1] == 0 and bool((terms.errors(slopes).diff() <= 0).all())


def test_no_slopes_and_no_inputs_leave_finite_factors():
    blocks = torch.randn(1, 4, 6)
    matrix = KMatrix(6, 4, structure=LowRank(rank=2))
    low_rank_(matrix, TwoSided.of(blocks, torch.zeros(1, 6, 6), torch.zeros(1, 3, 4)))
    assert all(factor.isfinite().all() for factor in matrix.factors)


def test_other_structures_are_refused():
    with pytest.raises(StructureError, match="low rank"):
        low_rank_(KMatrix(16, 16, structure=Monarch()), TwoSided.of(torch.eye(16)[None], torch.eye(16)[None]))
