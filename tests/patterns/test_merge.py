import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.patterns.merge import merge_chain, merge_pair, merge_plan, widen
from ksurgeon.patterns.pattern import Pattern, butterfly_patterns, check_chain, hull


def splits(n):
    sizes = range(1, n + 1)
    return [(a, m, n // (a * m)) for a in sizes for m in sizes if n % (a * m) == 0]


@st.composite
def chains(draw, length):
    """Any factors that compose, nested or not."""
    triple = draw(st.sampled_from(splits(draw(st.integers(1, 24)))))
    patterns = [Pattern(triple[0], triple[1], draw(st.integers(1, 3)), triple[2])]
    for _ in range(draw(length) - 1):
        a, c, d = draw(st.sampled_from(splits(patterns[-1].out_features)))
        patterns.append(Pattern(a, draw(st.integers(1, 3)), c, d))
        if patterns[-1].out_features > 48:
            break
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return [torch.randn(p.shape, dtype=torch.float64, generator=generator) for p in check_chain(patterns)]


@given(chain=chains(st.just(2)))
@settings(deadline=None)
def test_merged_pair_is_the_product(kronecker, chain):
    if len(chain) == 2:
        merged = merge_pair(*chain)
        assert Pattern.of(merged.shape) == hull(*(Pattern.of(f.shape) for f in chain))
        torch.testing.assert_close(kronecker([merged]), kronecker(chain))


@given(chain=chains(st.integers(1, 5)), radix=st.integers(1, 64))
@settings(deadline=None)
def test_merged_chain_is_the_product(kronecker, chain, radix):
    merged = merge_chain(chain, radix)
    assert len(merged) <= len(chain)
    torch.testing.assert_close(kronecker(merged), kronecker(chain))


@given(chain=chains(st.just(1)))
@settings(deadline=None)
def test_widening_keeps_the_matrix(kronecker, chain):
    small = Pattern.of(chain[0].shape)
    for a in (x for x in range(1, small.a + 1) if small.a % x == 0):
        for d in (x for x in range(1, small.d + 1) if small.d % x == 0):
            wide = Pattern(a, small.out_features // (a * d), small.in_features // (a * d), d)
            torch.testing.assert_close(kronecker([widen(chain[0], wide)]), kronecker(chain))


@pytest.mark.parametrize("max_radix", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("options", [{"radix": 2}, {"radix": 4}, {}, {"width": 2}])
def test_plan_covers_the_chain_within_the_radix(max_radix, options):
    patterns = KMatrix(256, start="empty", **options).patterns
    plan = merge_plan(patterns, max_radix)
    assert sum(plan) == len(patterns)
    position = 0
    for count in plan:
        merged = patterns[position]
        for pattern in patterns[position + 1 : position + count]:
            merged = hull(merged, pattern)
        assert count == 1 or max(merged.b, merged.c) <= max(max_radix, 4)
        position += count


def test_radix_two_becomes_radix_eight():
    assert merge_plan(butterfly_patterns((2,) * 6), 8) == (3, 3)


def test_the_two_middle_factors_of_a_kaleidoscope_are_one():
    assert merge_plan(KMatrix(16, radix=4, start="empty").patterns, 4) == (1, 2, 1)


def test_merging_is_differentiable():
    factors = [
        torch.randn(p.shape, dtype=torch.float64, requires_grad=True) for p in butterfly_patterns((2, 3, 2))
    ]
    assert torch.autograd.gradcheck(lambda *f: merge_chain(list(f), 64)[0], factors)
