import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ksurgeon.errors import StructureError
from ksurgeon.patterns.pattern import (
    Pattern,
    butterfly_patterns,
    check_chain,
    hull,
    kaleidoscope_patterns,
    transposed_chain,
)


def divisor_triples(n):
    sizes = range(1, n + 1)
    return [(a, m, n // (a * m)) for a in sizes for m in sizes if n % (a * m) == 0]


@st.composite
def neighbours(draw):
    triples = divisor_triples(draw(st.integers(1, 24)))
    (a1, b1, d1), (a2, c2, d2) = draw(st.sampled_from(triples)), draw(st.sampled_from(triples))
    return Pattern(a1, b1, draw(st.integers(1, 3)), d1), Pattern(a2, draw(st.integers(1, 3)), c2, d2)


def test_sizes():
    pattern = Pattern(2, 3, 5, 7)
    assert (pattern.in_features, pattern.out_features, pattern.numel) == (70, 42, 210)
    assert pattern.shape == (2, 7, 3, 5)
    assert Pattern.of(pattern.shape) == pattern
    assert pattern.transposed == Pattern(2, 5, 3, 7)


def test_a_factor_has_four_dimensions():
    with pytest.raises(StructureError, match=r"4 dimensions.*\(2, 3\)"):
        Pattern.of((2, 3))


def test_no_factor():
    with pytest.raises(StructureError, match="at least one factor"):
        check_chain([])


def test_size_below_one():
    with pytest.raises(StructureError, match="at least 1"):
        check_chain([(1, 2, 0, 2)])


def test_factors_that_do_not_compose_are_named():
    with pytest.raises(
        StructureError, match=r"factors 1 and 2 do not compose: .* gives 12 entries, .* takes 10"
    ):
        check_chain([(1, 2, 2, 6), (3, 4, 4, 1), (5, 1, 2, 1)])


def test_butterfly_strides_ascend():
    assert butterfly_patterns((2, 3, 4)) == ((12, 2, 2, 1), (4, 3, 3, 2), (1, 4, 4, 6))


@pytest.mark.parametrize("radices", [(2, 2, 2), (3, 4), (5,), (2, 3, 2), (1,)])
def test_every_entry_of_a_butterfly_matrix_has_one_path(radices, kronecker):
    for chain in (butterfly_patterns(radices), transposed_chain(butterfly_patterns(radices))):
        dense = kronecker([torch.ones(p.shape) for p in chain])
        assert torch.equal(dense, torch.ones_like(dense))


def test_kaleidoscope_applies_the_transposed_butterfly_first():
    butterfly = butterfly_patterns((2, 3))
    assert kaleidoscope_patterns((2, 3), 2) == (transposed_chain(butterfly) + butterfly) * 2


@given(pair=neighbours())
@settings(deadline=None)
def test_hull_holds_the_product(kronecker, pair):
    dense = kronecker([torch.ones(p.shape) for p in pair])
    held = kronecker([torch.ones(hull(*pair).shape)])
    assert held.shape == dense.shape
    assert not dense[held == 0].any()
