from math import pi

import pytest
import torch

from ksurgeon.errors import StructureError, WeightsError
from ksurgeon.fit import fit_
from ksurgeon.fit.refine import product
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.radix import layout
from ksurgeon.kmatrix.structures import Chain, GroupedKaleidoscope, Kaleidoscope
from ksurgeon.patterns.pattern import butterfly_patterns, transposed_chain


def relative(matrix, weight):
    difference = matrix.to_dense().detach() - weight
    return (difference.norm() / weight.norm()).item()


def hadamard(n):
    dense = torch.ones(1, 1, dtype=torch.float64)
    while len(dense) < n:
        dense = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), dense)
    return dense


def fourier(radices):
    """DFT, and the order of its columns that undoes the digit reversal."""
    n = torch.arange(n_ := int(torch.tensor(radices).prod()))
    reversal = n.view(*radices).permute(*reversed(range(len(radices)))).flatten()
    return torch.exp(-2j * pi * (n[:, None] * n % n_).double() / n_), reversal


def butterflies(n, radix="auto"):
    chain = butterfly_patterns(layout(n, n, 1, radix).radices)
    return {"up": chain, "down": transposed_chain(chain)}


def structured(n, kind, chain):
    if kind == "hadamard":
        return hadamard(n)
    if kind == "fourier":
        up = chain[0].d == 1
        dense, reversal = fourier([p.b for p in (chain if up else chain[::-1])])
        return dense[:, reversal] if up else dense[reversal]
    return product([torch.randn(p.shape, dtype=torch.float64) for p in chain])


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("radix", ["auto", 2])
@pytest.mark.parametrize(
    ("n", "kind"),
    [(1024, "hadamard"), (1024, "fourier"), (1024, "random"), (768, "fourier"), (768, "random")],
)
def test_butterfly_matrices_are_recovered(n, kind, radix, direction):
    chain = butterflies(n, radix)[direction]
    weight = structured(n, kind, chain)
    for structure in (Chain(factors=chain), Kaleidoscope(radix=radix)):
        matrix = KMatrix(n, structure=structure, dtype=weight.dtype)
        assert fit_(matrix, weight) < 1e-12
        assert relative(matrix, weight) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_recovered_in_single_precision(dtype):
    weight = hadamard(256).to(dtype)
    matrix = KMatrix(256, dtype=dtype)
    assert fit_(matrix, weight) < 1e-6
    assert relative(matrix, weight) < 1e-6


@pytest.mark.parametrize("options", [{}, {"width": 2}, {"expansion": 2}, {"radix": (3, 32)}])
def test_a_permutation_is_met_exactly(options):
    weight = torch.eye(96)[torch.randperm(96)]
    matrix = KMatrix(96, **options)
    assert fit_(matrix, weight) == 0
    assert torch.equal(matrix.to_dense(), weight)


def test_monarch_reaches_the_least_error():
    weight = torch.randn(256, 256)
    matrix = KMatrix(256, structure=Chain(factors=((16, 16, 16, 1), (1, 16, 16, 16))))
    blocks = weight.double().view(16, 16, 16, 16).permute(1, 2, 0, 3)
    least = torch.linalg.svdvals(blocks)[..., 1:].square().sum().sqrt() / weight.norm()
    assert fit_(matrix, weight) == pytest.approx(least.item(), rel=1e-6)
    assert relative(matrix, weight) == pytest.approx(least.item(), rel=1e-6)


@pytest.mark.parametrize("sizes", [(64, 64), (64, 128), (128, 64), (40, 144), (144, 40)])
def test_refinement_of_grouped_structures(sizes):
    weight = torch.randn(sizes[1], sizes[0])
    start, refined = (KMatrix(*sizes, structure=GroupedKaleidoscope(groups=4)) for _ in range(2))
    before, after = fit_(start, weight, steps=0), fit_(refined, weight)
    assert before < 0.9  # the groups alone hold a quarter of the energy
    assert after < 0.9 * before
    assert relative(refined, weight) == pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((48, 48), {}),
        ((48, 48), {"width": 2, "expansion": 2}),
        ((37, 100), {}),
        ((100, 37), {"width": 2}),
        ((20, 30), {"groups": 5}),
        ((74, 82), {"groups": 2}),
        ((1, 7), {}),
        ((1, 1), {}),
        ((24, 24), {"structure": Chain(factors=((4, 6, 6, 1), (6, 4, 4, 1)))}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_error_returned_is_the_error(sizes, options, dtype):
    groups = options.get("groups", 1)
    weight = torch.block_diag(
        *(torch.randn(sizes[1] // groups, sizes[0] // groups, dtype=dtype) for _ in range(groups))
    )
    matrix = KMatrix(*sizes, dtype=dtype, **options)
    error = fit_(matrix, weight, steps=20)
    assert error < 0.99
    assert relative(matrix, weight) == pytest.approx(error, rel=1e-4, abs=1e-6)


def test_refinement_never_makes_it_worse():
    chain = butterflies(64)["up"]
    weight = structured(64, "random", chain)
    weight += 1e-3 * weight.norm() / 64 * torch.randn(64, 64, dtype=torch.float64)
    for structure in (Chain(factors=chain), Kaleidoscope()):
        errors = [fit_(KMatrix(64, structure=structure), weight, steps=steps) for steps in (0, 1, 5, 60)]
        assert errors[0] < 2e-3
        assert max(errors) <= errors[0] * 1.001


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_scale_does_not_matter(scale):
    weight = torch.randn(32, 32)
    matrix, other = KMatrix(32), KMatrix(32)
    # Rounding grows over the steps, so the results are near each other, not the same.
    assert fit_(matrix, weight * scale) == pytest.approx(fit_(other, weight), rel=0.03)
    assert relative(matrix, weight * scale) == pytest.approx(relative(other, weight), rel=0.03)
    gains = [
        (f.detach().norm() / p.in_features**0.5).item()
        for f, p in zip(matrix.factors, matrix.patterns, strict=True)
    ]
    assert gains == pytest.approx([gains[0]] * len(gains), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_dtypes(dtype):
    weight = hadamard(64).to(dtype)
    matrix = KMatrix(64, dtype=dtype)
    error = fit_(matrix, weight)
    assert error < (5e-3 if dtype is torch.float16 else 4e-2)
    assert matrix.factors[0].dtype == dtype


def test_a_real_weight_in_a_complex_matrix():
    matrix = KMatrix(64, dtype=torch.complex64)
    assert fit_(matrix, hadamard(64).float()) < 1e-6


def test_a_weight_of_zeros():
    for structure in (Kaleidoscope(), GroupedKaleidoscope(groups=2)):
        matrix = KMatrix(8, structure=structure)
        assert fit_(matrix, torch.zeros(8, 8)) == 0
        assert not matrix.to_dense().any()


def test_the_same_every_time_and_no_use_of_the_global_generator():
    weight = torch.randn(48, 48)
    results = []
    for structure in (Kaleidoscope(), Chain(factors=((4, 12, 12, 1), (12, 4, 4, 1)))):
        for seed in (1, 2):
            matrix = KMatrix(48, structure=structure)
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            fit_(matrix, weight, steps=10)
            assert torch.equal(torch.get_rng_state(), state)
            results.append(matrix.to_dense().detach())
        torch.testing.assert_close(results[-1], results[-2], rtol=0, atol=1e-3)


def test_progress_and_interruption():
    weight = torch.randn(32, 32)
    matrix = KMatrix(32)
    seen = []
    fit_(matrix, weight, steps=7, on_step=lambda *step: seen.append(step))
    assert seen == [(step, 7) for step in range(1, 8)]
    before = matrix.to_dense()

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_(matrix, 2 * weight, on_step=stop)
    assert torch.equal(matrix.to_dense(), before)


def test_works_where_gradients_are_on_or_off():
    weight = torch.nn.Parameter(torch.randn(16, 16))
    errors = [fit_(KMatrix(16), weight, steps=5)]
    with torch.no_grad():
        errors.append(fit_(KMatrix(16), weight, steps=5))
    with torch.inference_mode():
        errors.append(fit_(KMatrix(16), weight, steps=5))
    assert errors[0] == errors[1] == errors[2]
    assert weight.grad is None


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.ones(8, 7), StructureError, r"shape \(8, 8\), got a weight of shape \(8, 7\)"),
        (torch.full((8, 8), float("nan")), WeightsError, "NaN or infinite"),
        (torch.eye(8) / 0, WeightsError, "NaN or infinite"),
        (torch.ones(8, 8, dtype=torch.complex64), WeightsError, "complex"),
        (torch.eye(8, dtype=torch.int64), WeightsError, "dtype torch.int64; a fit takes floating"),
        (torch.eye(8, dtype=torch.bool), WeightsError, "dtype torch.bool"),
        (torch.eye(8).to(torch.float8_e4m3fn), WeightsError, "float8"),
    ],
)
def test_weights_that_cannot_be_fitted(weight, error, message):
    matrix = KMatrix(8)
    before = matrix.to_dense()
    with pytest.raises(error, match=message):
        fit_(matrix, weight)
    assert torch.equal(matrix.to_dense(), before)
