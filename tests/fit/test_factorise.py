from math import sqrt

import pytest
import torch

from ksurgeon.errors import StructureError, WeightsError
from ksurgeon.fit.factorise import factorise
from ksurgeon.fit.refine import product
from ksurgeon.kmatrix.radix import layout
from ksurgeon.patterns.pattern import Pattern, butterfly_patterns, transposed_chain


def drawn(patterns, dtype=torch.float64):
    return [torch.randn(p.shape, dtype=dtype) for p in patterns]


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


CHAINS = {
    "radix 2": butterfly_patterns((2,) * 5),
    "mixed": butterfly_patterns((3, 2, 5)),
    "transposed": transposed_chain(butterfly_patterns((2, 5, 3))),
    "wide": (Pattern(6, 2, 2, 1), Pattern(1, 9, 6, 2)),
    "first rectangular": (Pattern(6, 2, 5, 1), Pattern(2, 3, 3, 2), Pattern(1, 2, 2, 6)),
    "last rectangular": (Pattern(6, 2, 2, 1), Pattern(2, 3, 3, 2), Pattern(1, 7, 2, 6)),
    "blocks of rank 2": (Pattern(3, 4, 5, 1), Pattern(1, 6, 6, 2)),
    "grouped, then mixed": (Pattern(4, 4, 6, 1), Pattern(1, 4, 4, 4)),
    "block-diagonal": (Pattern(6, 2, 2, 2), Pattern(3, 2, 2, 4)),
    "one factor": (Pattern(2, 3, 4, 5),),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_chain_is_recovered(chain, dtype, kronecker):
    weight = kronecker(drawn(chain, dtype))
    factors = factorise(weight, chain)
    assert [Pattern.of(f.shape) for f in factors] == list(chain)
    assert relative(kronecker(factors), weight) < 1e-13


def test_two_factors_have_the_least_error(kronecker):
    """Eckart–Young in every block: rows of one residue, columns of one group."""
    weight = torch.randn(24, 24, dtype=torch.float64)
    chain = (Pattern(4, 6, 6, 1), Pattern(1, 12, 12, 2))
    blocks = weight.view(12, 2, 4, 6).permute(1, 2, 0, 3).reshape(8, 12, 6)
    least = torch.linalg.svdvals(blocks)[:, 3:].square().sum().sqrt()  # 24 inner entries, 8 blocks: rank 3
    torch.testing.assert_close((kronecker(factorise(weight, chain)) - weight).norm(), least)


@pytest.mark.parametrize(
    "chain", [butterfly_patterns((2,) * 5), transposed_chain(butterfly_patterns((2, 4, 4)))]
)
def test_the_error_keeps_the_published_bound(chain, kronecker):
    """At most √(L-1) times the least error, which is no more than the disturbance of a structured matrix."""
    structured = kronecker(drawn(chain))
    for noise in (1e-6, 1e-3, 0.1):
        disturbance = torch.randn(structured.shape, dtype=torch.float64)
        disturbance *= noise / disturbance.norm() * structured.norm()
        weight = structured + disturbance
        error = (kronecker(factorise(weight, chain)) - weight).norm()
        assert error <= sqrt(len(chain) - 1) * disturbance.norm()


def test_ranks_above_those_of_the_blocks_leave_no_parameter_dead(kronecker):
    chain = (Pattern(2, 6, 2, 1), Pattern(1, 12, 12, 1))
    weight = torch.randn(12, 4, dtype=torch.float64)
    factors = factorise(weight, chain)
    assert relative(kronecker(factors), weight) < 1e-13
    assert all(f.abs().amax((0, 1, 3)).min() > 0 and f.abs().amax((0, 1, 2)).min() > 0 for f in factors)


def test_zeros():
    factors = factorise(torch.zeros(12, 12), butterfly_patterns((3, 4)))
    assert all(torch.isfinite(f).all() for f in factors)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_entries_that_are_not_finite(bad):
    weight = torch.ones(6, 6)
    weight[2, 3] = bad
    with pytest.raises(WeightsError, match="not finite"):
        factorise(weight, butterfly_patterns((2, 3)))


def test_another_size():
    with pytest.raises(StructureError, match=r"shape \(6, 6\), got \(6, 5\)"):
        factorise(torch.ones(6, 5), butterfly_patterns((2, 3)))


def test_blocks_that_do_not_nest():
    with pytest.raises(StructureError, match="blocks do not nest"):
        factorise(torch.ones(24, 24), [Pattern(4, 6, 6, 1), Pattern(6, 4, 4, 1)])


@pytest.mark.parametrize("n", [768, 1024])
def test_large_chains(n):
    chain = butterfly_patterns(layout(n, n).radices)
    weight = product(drawn(chain))
    assert relative(product(factorise(weight, chain)), weight) < 1e-12
