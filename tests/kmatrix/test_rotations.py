"""K-matrices by angles: the mathematics, and what every K-module owes the model around it."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ksurgeon.errors import StructureError, SurgeryError
from ksurgeon.kernels import cpu, reference
from ksurgeon.kernels.cpu import pack
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.rotations import Rotations
from ksurgeon.kmatrix.shuffle import KChannelShuffle
from ksurgeon.kmatrix.structures import Kaleidoscope
from ksurgeon.patterns.rotated import rotated
from ksurgeon.train.parameters import balance_factors, parameter_groups
from ksurgeon.train.permutations import relax
from ksurgeon.train.settings import Settings


def orthogonal(**options: Any) -> Kaleidoscope:
    return Kaleidoscope(parametrization="orthogonal", **options)


OPTIONS = st.fixed_dictionaries(
    {"width": st.integers(1, 3), "radix": st.sampled_from(["auto", 2, 8]), "expansion": st.integers(1, 2)}
)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 70), options=OPTIONS, seed=st.integers(0, 9))
def test_products_are_those_of_rotations_and_diagonals(n: int, options: dict[str, Any], seed: int) -> None:
    torch.manual_seed(seed)
    structure = orthogonal(**options)
    matrix = KMatrix(n, structure=structure, start="random", dtype=torch.float64)
    held = matrix.factors
    assert isinstance(held, Rotations)
    assert sum(p.numel() for p in matrix.parameters()) == structure.parameters(n, n)
    assert matrix.multiplications == structure.multiplications(n, n)
    size, half = matrix.patterns[0].in_features, len(matrix.patterns) // (2 * structure.width)
    want = torch.eye(size, dtype=torch.float64)
    plain = rotated(held.angles, torch.ones_like(held.diagonal), matrix.patterns)
    for number, factor in enumerate(plain):
        one = reference.apply_chain(torch.eye(size, dtype=torch.float64), [factor.detach()], 0)
        torch.testing.assert_close(one @ one.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
        assert torch.linalg.det(one) > 0
        want = one @ want
        if (number + 1) % (2 * half) == half:
            want = held.diagonal[number // (2 * half)].detach()[:, None] * want
    x = torch.randn(3, n, dtype=torch.float64)
    for grad in (False, False, True):
        with torch.set_grad_enabled(grad):
            scale = want.abs().max()
            torch.testing.assert_close(matrix(x) / scale, x @ want[:n, :n].T / scale, rtol=0, atol=1e-12)
            torch.testing.assert_close(matrix.to_dense() / scale, want[:n, :n] / scale, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("n", [24, 58, 96, 116])
def test_an_orthogonal_start_is_orthogonal(n: int, dtype: torch.dtype, atol: float) -> None:
    dense = KMatrix(n, structure=orthogonal(), start="orthogonal", dtype=dtype).to_dense().detach()
    torch.testing.assert_close(dense @ dense.T, torch.eye(n, dtype=dtype), rtol=0, atol=atol)
    assert (dense - torch.eye(n)).abs().max() > 0.1


@pytest.mark.parametrize("n", [1, 37, 96, 116])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_identity_is_exact(n: int, dtype: torch.dtype) -> None:
    matrix = KMatrix(n, structure=orthogonal(width=2), start="identity", dtype=dtype)
    x = torch.randn(3, n, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(matrix.to_dense(), torch.eye(n, dtype=dtype)) and torch.equal(matrix(x), x)


def test_a_random_start_keeps_the_variance() -> None:
    y = torch.stack([KMatrix(96, structure=orthogonal())(torch.randn(96)).detach() for _ in range(40)])
    assert 0.8 < y.square().mean() < 1.2


def distance_to(target: Tensor, block: Callable[[Tensor], Tensor], count: int) -> float:
    """Squared distance of the rotation that a descent from random angles ends with."""
    angles = (torch.rand(count, dtype=torch.float64) * 6.28).requires_grad_()
    optimiser = torch.optim.LBFGS([angles], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        error = (block(angles)[0, 0] - target).square().sum()
        error.backward()
        return error

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return loss().item()


def test_blocks_are_all_rotations(radix: int = 4) -> None:
    """As many directions as rotations have, at almost every point; and one drawn at random is reached."""
    matrix = KMatrix(radix, structure=orthogonal(radix=(radix,)), start="orthogonal", dtype=torch.float64)
    held, half = matrix.factors, radix * (radix - 1) // 2
    assert isinstance(held, Rotations)

    def block(angles: Tensor) -> Tensor:
        return rotated(torch.cat([angles, angles]), held.diagonal, matrix.patterns)[1]

    jacobian = torch.autograd.functional.jacobian(block, held.angles.detach()[:half]).flatten(0, -2)
    assert torch.linalg.matrix_rank(jacobian) == half
    target = torch.linalg.qr(torch.randn(radix, radix, dtype=torch.float64))[0]
    target[0] *= torch.linalg.det(target).sign()
    assert any(distance_to(target, block, half) < 1e-10 for _ in range(20))


@pytest.mark.parametrize("n, radix", [(6, "auto"), (5, "auto")])
def test_gradients(n: int, radix: Any) -> None:
    matrix = KMatrix(n, structure=orthogonal(radix=radix, width=2), start="random", dtype=torch.float64)
    sources = [p.detach().requires_grad_() for p in matrix.parameters()]
    x = torch.randn(2, n, dtype=torch.float64)

    def product(angles: Tensor, diagonal: Tensor) -> Tensor:
        held = {"factors.angles": angles, "factors.diagonal": diagonal}
        return torch.func.functional_call(matrix, held, (x,))

    assert torch.autograd.gradcheck(product, sources)
    assert torch.autograd.gradgradcheck(product, sources)


def by_data(matrix: KMatrix) -> None:
    matrix.factors.angles.data[3] += 1


def by_numpy(matrix: KMatrix) -> None:
    matrix.factors.diagonal.detach().numpy()[0, 5] += 3


def by_copy(matrix: KMatrix) -> None:
    with torch.no_grad():
        matrix.factors.angles.copy_(matrix.factors.angles + 1)


def by_new_data(matrix: KMatrix) -> None:
    matrix.factors.angles.data = matrix.factors.angles.data + 1


def by_new_parameter(matrix: KMatrix) -> None:
    matrix.factors.diagonal = nn.Parameter(torch.randn_like(matrix.factors.diagonal))


def by_optimiser(matrix: KMatrix) -> None:
    optimiser = torch.optim.SGD(matrix.parameters(), lr=1.0)
    matrix(torch.randn(4, matrix.in_features)).square().sum().backward()
    optimiser.step()


def by_loading(matrix: KMatrix) -> None:
    matrix.load_state_dict({name: value + 1 for name, value in matrix.state_dict().items()})


def by_assignment(matrix: KMatrix) -> None:
    matrix.load_state_dict({name: value + 1 for name, value in matrix.state_dict().items()}, assign=True)


WRITES = [
    by_data, by_numpy, by_copy, by_new_data, by_new_parameter, by_optimiser, by_loading, by_assignment,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("n", [16, 512])
def test_no_write_to_angles_is_stale(n: int, write: Callable[[KMatrix], None]) -> None:
    matrix = KMatrix(n, structure=orthogonal(), start="random").eval()
    inputs = [(torch.randn(1, n), -1), (torch.randn(40, n), -1), (torch.randn(2, n, 5, 5), 1)]
    for _ in range(2):
        before = []
        for x, dim in inputs * 2:
            with torch.no_grad():
                y = matrix(x, dim)
                want = reference.apply_chain(x, list(matrix.factors), dim)
            torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-3)
            before.append(y)
        write(matrix)
        with torch.no_grad():
            assert not any(torch.equal(y, matrix(*call)) for y, call in zip(before, inputs * 2, strict=True))


@pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled")
def test_inference_computes_the_blocks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        "ksurgeon.patterns.rotated.rotated", lambda *given: calls.append(given) or rotated(*given)
    )
    layers = [
        (KLinear(96, 96, structure=orthogonal()), torch.randn(1, 96)),
        (KPointwiseConv(96, 96, groups=2, structure=orthogonal()), torch.randn(2, 96, 4, 4)),
        (KChannelShuffle(96, 4, structure=orthogonal(expansion=2), start="random"), torch.randn(2, 96, 4, 4)),
    ]
    for layer, x in layers:
        with torch.no_grad():
            layer(x)
            calls.clear()
            layer(x), layer(x)
        assert not calls
    layer = layers[0][0]
    assert layer.weight.dtype == torch.float32
    with torch.no_grad():
        calls.clear()
        assert layer.weight.shape == (96, 96) and not calls
    first = layer.matrix.factors.angles
    assert id(first) in pack._PACKS
    cpu.forget(layer.matrix.factors)
    assert id(first) not in pack._PACKS


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_of_their_own(copy_of: Callable[[nn.Module], nn.Module]) -> None:
    layer, x = KLinear(24, 24, structure=orthogonal()), torch.randn(2, 24)
    with torch.no_grad():
        before = layer(x)
        other = copy_of(layer)
        assert torch.equal(other(x), before)
        other.matrix.factors.angles.add_(1)
        assert torch.equal(layer(x), before) and not torch.equal(other(x), before)
    assert set(layer.state_dict()) == {"bias", "matrix.factors.angles", "matrix.factors.diagonal"}
    assert all(type(value) is Tensor for value in layer.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    layer, x = KLinear(48, 48, structure=orthogonal()).to(dtype), torch.randn(3, 48, dtype=dtype)
    with torch.no_grad():
        near = {"rtol": 0.05, "atol": 0.05} if dtype.itemsize == 2 else {}
        torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias, **near)
    layer(x).float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_a_compiled_matrix_keeps_its_blocks_and_trains() -> None:
    layer, x = KLinear(24, 24, structure=orthogonal()), torch.randn(3, 24)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), layer(x))
            layer.matrix.factors.angles.data.add_(1)
    for model in (layer, compiled):
        model(x).square().sum().backward()
    angles = layer.matrix.factors.angles
    twice = angles.grad.clone()
    angles.grad = None
    layer(x).square().sum().backward()
    torch.testing.assert_close(twice, 2 * angles.grad, rtol=1e-4, atol=1e-4)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-5)


def test_training_lets_angles_be_without_decay_and_balance() -> None:
    layer = KLinear(24, 24, structure=orthogonal())
    before = copy.deepcopy(layer.state_dict())
    balance_factors(layer)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    groups = parameter_groups(layer, Settings(weight_decay=0.1))
    ours = {id(p) for p in layer.matrix.parameters()}
    assert [g["weight_decay"] for g in groups if ours & {id(p) for p in g["params"]}] == [0.0]


def test_what_cannot_be_is_refused() -> None:
    square = 'is for square maps, got 8 → 16; use parametrization = "free"'
    with pytest.raises(StructureError, match=square):
        KLinear(8, 16, structure=orthogonal())
    with pytest.raises(StructureError, match=r"is real, got torch\.complex64"):
        KMatrix(8, structure=orthogonal(), dtype=torch.complex64)
    with pytest.raises(SurgeryError, match="what is written to it would be lost"), torch.no_grad():
        KMatrix(8, structure=orthogonal()).factors[0].mul_(2)
    with pytest.raises(StructureError, match="start must be random"):
        KMatrix(8, structure=orthogonal(), start="zeros")  # type: ignore[arg-type]
    for write in (
        lambda: KMatrix.from_dense(torch.randn(8, 8), structure=orthogonal()),
        lambda: KMatrix.from_permutation([1, 0, 2], structure=orthogonal()),
        lambda: KChannelShuffle(8, 2, structure=orthogonal()),
        lambda: relax(KMatrix(8, structure=orthogonal())),
    ):
        with pytest.raises(StructureError, match='from angles; use parametrization = "free"'):
            write()
