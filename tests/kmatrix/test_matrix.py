import copy

import pytest
import torch

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import (
    Chain,
    GroupedKaleidoscope,
    Kaleidoscope,
    LowRank,
    Monarch,
    Sum,
)
from ksurgeon.patterns.merge import merge_chain
from tests.export import dynamic_batch

CASES = [
    (1, 1, {}),
    (5, 1, {}),
    (1, 7, {}),
    (8, 8, {"radix": 2}),
    (12, 12, {}),
    (12, 12, {"radix": [3, 4], "width": 2}),
    (24, 96, {}),
    (96, 24, {}),
    (37, 50, {"width": 2, "expansion": 2}),
    (50, 37, {}),
    (16, 24, {"structure": GroupedKaleidoscope(groups=4)}),
    (10, 9, {"structure": Chain(factors=((2, 3, 5, 2), (1, 10, 12, 1)))}),
    (12, 20, {"structure": LowRank(rank=3)}),
    (16, 22, {"structure": Monarch(blocks=4, block_rank=2)}),
    (12, 20, {"structure": Sum(Kaleidoscope(), rank=2)}),
    (37, 50, {"structure": Sum(Kaleidoscope(), share=0.6)}),
    (22, 16, {"structure": Sum(Monarch(), rank=1)}),
]
ids = [f"{i}-{o}-{'-'.join(options) or 'auto'}" for i, o, options in CASES]
TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 6e-2, torch.float32: 1e-5}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.fixture(params=CASES, ids=ids)
def case(request):
    in_features, out_features, options = request.param
    return in_features, out_features, options


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_products_agree_with_the_definition(case, dtype, kronecker):
    in_features, out_features, options = case
    matrix = KMatrix(in_features, out_features, dtype=dtype, **options)
    dense = kronecker(list(matrix.factors))[:out_features, :in_features]
    if matrix.side is not None:
        dense = dense + kronecker(list(matrix.side.factors))
    close(matrix.to_dense().detach(), dense)
    x = torch.randn(3, in_features, 2, dtype=dtype)
    y = torch.randn(4, out_features, dtype=dtype)
    close(matrix(x, 1).detach(), torch.einsum("oi,zij->zoj", dense, x))
    close(matrix(x, -2).detach(), torch.einsum("oi,zij->zoj", dense, x))
    close(matrix.transposed(y).detach(), y @ dense)
    close(matrix.adjoint(y).detach(), y @ dense.conj())
    assert matrix.multiplications == sum(f.numel() for f in matrix.parameters())
    structure = matrix.structure
    assert matrix.multiplications == structure.parameters(in_features, out_features)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_narrow_dtypes(case, dtype):
    in_features, out_features, options = case
    wide = KMatrix(in_features, out_features, dtype=torch.float64, **options)
    narrow = copy.deepcopy(wide).to(dtype)
    y = narrow(torch.ones(2, in_features, dtype=dtype))
    assert y.dtype == dtype
    expected = wide(torch.ones(2, in_features, dtype=torch.float64))
    assert (y - expected).norm() <= TOLERANCES[dtype] * max(1.0, expected.norm().item())


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_integers_are_refused(dtype):
    for make in (KMatrix, KLinear):
        with pytest.raises(StructureError, match=f"floating or complex numbers, got dtype={dtype}"):
            make(8, 8, dtype=dtype)


@pytest.mark.parametrize(("sizes", "groups"), [((20, 30), 5), ((37 * 2, 41 * 2), 2), ((6, 6), 6)])
@pytest.mark.parametrize("expansion", [1, 2])
def test_groups_are_blocks_of_a_diagonal(sizes, groups, expansion):
    matrix = KMatrix(*sizes, groups=groups, expansion=expansion, dtype=torch.float64)
    dense = matrix.to_dense().detach()
    blocks = dense.view(groups, sizes[1] // groups, groups, sizes[0] // groups)
    apart = ~torch.eye(groups, dtype=torch.bool)[:, None, :, None].expand_as(blocks)
    assert not blocks[apart].any()
    assert all(blocks[g, :, g].any() for g in range(groups))
    x = torch.randn(3, sizes[0], dtype=torch.float64)
    close(matrix(x).detach(), x @ dense.T)
    close(matrix.transposed(x @ dense.T).detach(), x @ dense.T @ dense)


@pytest.mark.parametrize("structure", [Sum(Kaleidoscope(), rank=2), Sum(Monarch(blocks=2), rank=2)])
def test_groups_of_a_sum(structure):
    matrix = KMatrix(24, 36, groups=3, structure=structure, dtype=torch.float64)
    dense = matrix.to_dense().detach()
    assert torch.equal(
        dense, torch.block_diag(*(dense[12 * g : 12 * g + 12, 8 * g : 8 * g + 8] for g in range(3)))
    )
    assert torch.linalg.matrix_rank(matrix.side.to_dense()) == 6
    x = torch.randn(3, 24, dtype=torch.float64)
    close(matrix(x).detach(), x @ dense.T)


@pytest.mark.parametrize("start", ["identity", "orthogonal"])
def test_the_path_beside_a_chain_starts_with_nothing(start):
    matrix = KMatrix(24, structure=Sum(Kaleidoscope(), rank=2), start=start, dtype=torch.float64)
    dense = matrix.to_dense()
    close(dense @ dense.T, torch.eye(24, dtype=torch.float64))
    dense.square().sum().backward()
    assert all(factor.grad is not None for factor in matrix.parameters())


def test_the_sum_of_chain_and_path_keeps_the_variance():
    x = torch.randn(4096, 64)
    for structure in (Sum(Kaleidoscope(), rank=64), Sum(Monarch(), rank=32)):
        outputs = torch.stack([KMatrix(64, structure=structure)(x).std() for _ in range(20)])
        assert 0.9 < outputs.mean() < 1.1


def test_every_dimension_and_layout():
    matrix = KMatrix(6, 10, dtype=torch.float64)
    dense = matrix.to_dense().detach()
    x = torch.randn(4, 6, 3, 6, dtype=torch.float64)
    for dim in (1, 3, -1, -3):
        for given in (x, x.transpose(1, 3), x.flip(2), x[::2], x[..., None].expand(4, 6, 3, 6, 2)[..., 0]):
            wanted = torch.tensordot(given, dense, dims=([dim], [1])).movedim(-1, dim)
            close(matrix(given, dim).detach(), wanted)
    close(matrix(x.to(memory_format=torch.channels_last), 1), matrix(x, 1))


def test_vectors_and_nothing():
    matrix = KMatrix(6, 10)
    x = torch.randn(6)
    torch.testing.assert_close(matrix(x), matrix(x[None])[0])
    assert matrix(torch.empty(0, 6)).shape == (0, 10)
    assert matrix(torch.empty(2, 6, 0), 1).shape == (2, 10, 0)
    assert matrix(torch.empty(0, 3, 6), 2).shape == (0, 3, 10)
    assert KMatrix(37, 50)(torch.empty(0, 37)).shape == (0, 50)


def test_real_input_to_a_complex_matrix():
    matrix = KMatrix(6, dtype=torch.complex64)
    x = torch.randn(2, 6)
    torch.testing.assert_close(matrix(x), matrix(x.to(torch.complex64)))


def test_wrong_input_size():
    with pytest.raises(ValueError, match=r"expected 6 entries along dimension 1, got .* \(2, 5\)"):
        KMatrix(6)(torch.randn(2, 5), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width and expansion"),
        ({"expansion": 0}, "width and expansion"),
        ({"radix": 1}, "radix must be"),
        ({"radix": "large"}, "radix must be"),
        ({"radix": []}, "radix must be"),
        ({"radix": [2, 3]}, "multiply to 6"),
        ({"groups": 5}, "5 groups do not divide 12 → 12"),
        ({"groups": 0}, "0 groups"),
    ],
)
def test_options_that_mean_nothing(options, message):
    with pytest.raises(StructureError, match=message):
        KMatrix(12, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("in_features", "out_features"), [(6, 6), (7, 9), (12, 4)])
def test_gradients(in_features, out_features, dtype):
    matrix = KMatrix(in_features, out_features, radix=(2, 3) if in_features == 6 else "auto", dtype=dtype)
    x = torch.randn(2, in_features, dtype=dtype, requires_grad=True)
    names = [name for name, _ in matrix.named_parameters()]

    def function(x, *factors):
        return torch.func.functional_call(matrix, dict(zip(names, factors, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *matrix.parameters()))


def test_gradients_reach_every_factor():
    matrix = KMatrix(37, 64, width=2)
    matrix(torch.randn(5, 37)).square().sum().backward()
    assert all(factor.grad is not None and factor.grad.abs().sum() > 0 for factor in matrix.factors)


@pytest.mark.parametrize("case_", CASES[3:], ids=ids[3:])
def test_merged_chain_is_the_same_matrix(case_, kronecker):
    in_features, out_features, options = case_
    matrix = KMatrix(in_features, out_features, dtype=torch.float64, **options)
    close(kronecker(matrix.merged(16)), kronecker(list(matrix.factors)))
    assert len(merge_chain(list(matrix.factors), 4096)) == 1


def test_deepcopy_is_independent():
    matrix = KMatrix(12)
    other = copy.deepcopy(matrix)
    with torch.no_grad():
        other.factors[0].zero_()
    assert matrix.to_dense().abs().sum() > 0
    assert not other.to_dense().any()


def test_state_dict_round_trip():
    matrix, other = KMatrix(24, 96, width=2), KMatrix(24, 96, width=2)
    other.load_state_dict(matrix.state_dict())
    assert torch.equal(matrix.to_dense(), other.to_dense())
    assert all(tuple(f.shape) == p.shape for f, p in zip(matrix.factors, matrix.patterns, strict=True))


@pytest.mark.parametrize("sizes", [(24, 24), (37, 64)])
def test_compile_without_graph_breaks(sizes):
    matrix = KMatrix(*sizes)
    x = torch.randn(3, sizes[0])
    compiled = torch.compile(matrix, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), matrix(x))
    compiled(x).sum().backward()
    assert all(factor.grad is not None for factor in matrix.factors)


@pytest.mark.parametrize("sizes", [(24, 24), (37, 64)])
def test_export(sizes):
    matrix = KMatrix(*sizes)
    x = torch.randn(3, sizes[0])
    program = torch.export.export(matrix, (x,), dynamic_shapes=dynamic_batch())
    torch.testing.assert_close(program.module()(x), matrix(x))
    x = torch.randn(7 if dynamic_batch() else 3, sizes[0])
    torch.testing.assert_close(program.module()(x), matrix(x))


def test_printed_form_tells_the_structure():
    text = repr(KMatrix(244, width=2))
    assert "in_features=244, out_features=244, (BB*)^2, e=1, radix auto, padded to" in text
    assert "groups=4" in repr(KMatrix(8, groups=4))


def test_from_dense_takes_dtype_from_the_weight():
    weight = KMatrix(
        12, structure=Chain(factors=((4, 3, 3, 1), (1, 4, 4, 3))), dtype=torch.float64
    ).to_dense()
    matrix = KMatrix.from_dense(weight.detach(), radix=(3, 4))
    assert matrix.factors[0].dtype == torch.float64
    close(matrix.to_dense(), weight)
