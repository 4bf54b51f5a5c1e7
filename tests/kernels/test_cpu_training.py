"""Training through the compiled CPU kernels: gradients, and who may look on."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from ksurgeon.kernels import cpu, reference, reference_only
from ksurgeon.kernels.cpu import ops
from ksurgeon.kernels.cpu.low_rank import train_beside
from ksurgeon.kernels.cpu.pack import Pack
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import Kaleidoscope, Sum
from ksurgeon.patterns.pattern import Pattern
from tests.chains import TOLERANCE, assert_near, chains, drawn

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled")


@settings(max_examples=100, deadline=None)
@given(
    shapes=chains(),
    dtype=st.sampled_from(list(TOLERANCE)),
    before=st.sampled_from([(), (0,), (1,), (3,), (40,), (2, 35)]),
    after=st.sampled_from([(), (3,), (9,), (3, 5), (61,)]),
    chain=st.sampled_from([ops.chain, ops.train_chain]),
    seed=st.integers(0, 2**20),
)
def test_gradients_are_those_of_the_reference(
    shapes: list[tuple[int, int, int, int]],
    dtype: torch.dtype,
    before: tuple[int, ...],
    after: tuple[int, ...],
    chain: Callable[..., Tensor],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    inputs, outputs = Pattern.of(shapes[0]).in_features, Pattern.of(shapes[-1]).out_features
    dim = len(before)
    leaves = [
        drawn(dtype, *before, inputs, *after),
        drawn(dtype, outputs),
        *(drawn(dtype, *shape) / shape[3] ** 0.5 for shape in shapes),
    ]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    exact = torch.complex128 if dtype.is_complex else torch.float64
    doubles = [leaf.detach().to(exact).requires_grad_() for leaf in leaves]
    y = chain(leaves[0], leaves[2:], leaves[1], dim)
    g = drawn(dtype, *y.shape)
    want_y = reference.apply_chain(doubles[0], doubles[2:], dim, doubles[1])
    wanted = torch.autograd.grad(want_y, doubles, g.to(exact))
    for got, want in zip(torch.autograd.grad(y, leaves, g), wanted, strict=True):
        assert_near(got, want, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape, dim", [((12,), -1), ((0, 12), 1), ((2, 3, 12), 2), ((2, 12, 3), 1)])
def test_low_ranks_are_trained(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    leaves = [drawn(dtype, *shape), drawn(dtype, 9), drawn(dtype, 1, 1, 5, 12), drawn(dtype, 1, 1, 9, 5)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    exact = torch.complex128 if dtype.is_complex else torch.float64
    doubles = [leaf.detach().to(exact).requires_grad_() for leaf in leaves]
    y = cpu.apply_chain(leaves[0], leaves[2:], dim, leaves[1])
    want = reference.apply_chain(doubles[0], doubles[2:], dim, doubles[1])
    assert_near(y, want, dtype)
    wanted = torch.autograd.grad(want, doubles, torch.ones_like(want))
    for got, one in zip(torch.autograd.grad(y, leaves, torch.ones_like(y)), wanted, strict=True):
        assert_near(got, one, dtype)


def test_a_bias_of_another_dtype_is_added_in_training_too() -> None:
    factors = [torch.randn(1, 1, 5, 12), torch.randn(1, 1, 9, 5)]
    x, bias = torch.randn(3, 12, requires_grad=True), torch.randn(9, dtype=torch.float64)
    y = cpu.apply_chain(x, factors, -1, bias)
    assert y.dtype == torch.float32 and y.requires_grad
    assert torch.allclose(y, reference.apply_chain(x, factors, -1, bias), atol=1e-5)
    with pytest.raises(ValueError, match="bias"):
        cpu.apply_chain(x, factors, -1, torch.randn(1))


@pytest.mark.parametrize("chain", [ops.chain, ops.train_chain])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradcheck(dtype: torch.dtype, chain: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    matrix = KMatrix(6, 4, dtype=dtype)
    x = torch.randn(2, 6, 2, dtype=dtype, requires_grad=True)
    bias = torch.randn(4, dtype=dtype, requires_grad=True)

    def apply(x: Tensor, bias: Tensor, *factors: Tensor) -> Tensor:
        return chain(x, list(factors), bias, 1)

    inputs = (x, bias, *matrix.factors)
    assert torch.autograd.gradcheck(apply, inputs)
    assert torch.autograd.gradgradcheck(apply, inputs)


@pytest.mark.parametrize("graph", [False, True], ids=["", "of the gradients"])
@pytest.mark.parametrize("wanted", range(5))
def test_one_gradient_alone(wanted: int, graph: bool) -> None:
    torch.manual_seed(0)
    factors = [torch.randn(3, 1, 2, 4), torch.randn(2, 1, 5, 3), torch.randn(1, 2, 4, 5)]
    tensors = [tensor.double() for tensor in (torch.randn(7, 12), torch.randn(8), *factors)]
    tensors[wanted].requires_grad_()
    x, bias, *factors = tensors
    for y in (cpu.apply_chain(x, factors, -1, bias), ops.chain(x, factors, bias, -1)):
        want = reference.apply_chain(x, factors, -1, bias)
        (got,) = torch.autograd.grad(y.square().sum(), tensors[wanted], create_graph=graph)
        torch.testing.assert_close(got, torch.autograd.grad(want.square().sum(), tensors[wanted])[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(24,), (0, 24), (5, 24), (2, 3, 24)], ids=str)
def test_a_low_rank_beside_a_chain_is_trained_with_it(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    factors = [drawn(dtype, 1, 4, 5, 6) / 2, drawn(dtype, 4, 1, 4, 5) / 2]
    leaves = [
        drawn(dtype, *shape),
        drawn(dtype, 16),
        drawn(dtype, 1, 1, 3, 24) / 5,
        drawn(dtype, 1, 1, 16, 3),
        *factors,
    ]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    x, bias, down, up, *factors = leaves
    y = cpu.beside(x, factors, (down, up), bias)
    assert y is not None
    wide, wide_bias, *side_and_factors = doubles
    want = reference.apply_chain(wide, side_and_factors[2:], -1, wide_bias)
    want = want + reference.apply_chain(wide, side_and_factors[:2], -1)
    assert_near(y, want, dtype)
    g = drawn(dtype, *y.shape)
    wanted = torch.autograd.grad(want, doubles, g.double())
    for got, one in zip(torch.autograd.grad(y, leaves, g), wanted, strict=True):
        assert_near(got, one, dtype)


def test_gradcheck_of_a_low_rank_beside_a_chain() -> None:
    torch.manual_seed(0)
    shapes = (3, 6), (4,), (1, 1, 2, 6), (1, 1, 4, 2), (1, 2, 3, 3), (1, 2, 2, 3)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def apply(x: Tensor, bias: Tensor, down: Tensor, up: Tensor, *factors: Tensor) -> Tensor:
        y = cpu.beside(x, factors, (down, up), bias)
        assert y is not None
        return y

    assert torch.autograd.gradcheck(apply, leaves)
    assert torch.autograd.gradgradcheck(apply, leaves)
    for wanted in range(len(leaves)):
        alone = [leaf.detach().requires_grad_(k == wanted) for k, leaf in enumerate(leaves)]
        y = apply(*alone)
        for leaf, want in zip(alone, torch.autograd.grad(apply(*leaves).sum(), leaves), strict=True):
            if leaf.requires_grad:
                torch.testing.assert_close(torch.autograd.grad(y.sum(), leaf)[0], want)


def test_a_layer_with_a_path_is_trained_as_one_unless_something_watches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    structure = Sum(Kaleidoscope(), share=0.8)
    layer, x = KLinear(96, 96, structure=structure), torch.randn(5, 96, requires_grad=True)
    calls = []
    monkeypatch.setattr(cpu, "train_beside", lambda *given: calls.append(given) or train_beside(*given))
    with torch.no_grad():
        want = layer(x)
    torch.testing.assert_close(layer(x), want)
    assert len(calls) == 1
    seen = []
    handle = layer.matrix.side.register_forward_hook(lambda *given: seen.append(given))
    torch.testing.assert_close(layer(x), want)
    handle.remove()
    assert len(seen) == 1 and len(calls) == 1
    calls.clear()
    across = torch.randn(96, 5).T.requires_grad_()
    torch.testing.assert_close(layer(across), layer(across.detach().contiguous()))
    assert len(calls) == 1
    with pytest.raises(ValueError, match="expected 96 entries"):
        layer(torch.randn(5, 23, requires_grad=True))


def test_training_packs_weights_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made, init = [], Pack.__init__
    monkeypatch.setattr(Pack, "__init__", lambda *given: made.append(given[0]) or init(*given))
    layer = KLinear(16, 16)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    for step in range(3):
        for _ in range(2):
            layer(torch.randn(3, 16)).sum().backward()
        assert len(made) == step + 1
        optimiser.step()


TRAINED: dict[str, Callable[[Tensor, Sequence[Tensor]], Tensor]] = {
    "function": lambda x, factors: ops.train_chain(x, factors[2:], None, -1),
    "operator": lambda x, factors: ops.chain(x, factors[2:], None, -1),
    "beside": lambda x, factors: train_beside(x, factors[2:], factors[0], factors[1], None),
}


def _parts() -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    shapes = (1, 1, 2, 12), (1, 1, 8, 2), (3, 1, 2, 4), (2, 1, 4, 3)
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    return x, [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("way", TRAINED)
def test_changes_between_forward_and_backward_are_refused(way: str) -> None:
    for changed in range(5 if way == "beside" else 3):
        x, factors = _parts()
        y = TRAINED[way](x, factors)
        with torch.no_grad():
            (x, *reversed(factors))[changed].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("way", TRAINED)
def test_recomputed_in_the_backward_pass(way: str, reentrant: bool) -> None:
    x, factors = _parts()
    want = torch.autograd.grad(TRAINED[way](x, factors).square().sum(), [x, factors[-1]])
    unpacked = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: unpacked.append(t) or t):
        TRAINED[way](x, factors).square().sum().backward()
    assert len(unpacked) == {"function": 4, "operator": 4, "beside": 7}[way]  # once, and what square() keeps
    for kept, leaf in zip(want, (x, factors[-1]), strict=True):
        torch.testing.assert_close(leaf.grad, kept)
        leaf.grad = None
    checkpoint(lambda x: TRAINED[way](x, factors).square().sum(), x, use_reentrant=reentrant).backward()
    for kept, leaf in zip(want, (x, factors[-1]), strict=True):
        torch.testing.assert_close(leaf.grad, kept)


STRUCTURES = {"chain": Kaleidoscope(), "sum": Sum(Kaleidoscope(), share=0.8)}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_layer_used_twice_has_the_same_gradients_with_a_graph(structure: str) -> None:
    torch.manual_seed(0)
    layer = KLinear(96, 96, structure=STRUCTURES[structure], dtype=torch.float64)
    x = torch.randn(3, 96, dtype=torch.float64)
    parameters = list(layer.parameters())
    want = torch.autograd.grad(layer(layer(x)).square().sum(), parameters)
    got = torch.autograd.grad(layer(layer(x)).square().sum(), parameters, create_graph=True)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)
    with reference_only():
        exact = torch.autograd.grad(layer(layer(x)).tanh().sum(), parameters, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in exact), parameters)
    found = torch.autograd.grad(layer(layer(x)).tanh().sum(), parameters, create_graph=True)
    for one, other in zip(
        torch.autograd.grad(sum(g.square().sum() for g in found), parameters), second, strict=True
    ):
        torch.testing.assert_close(one, other)
    for parameter in layer.matrix.parameters():
        parameter.requires_grad_(False)
    (of_bias,) = torch.autograd.grad(layer(x).square().sum(), layer.bias, create_graph=True)
    torch.testing.assert_close(of_bias, 2 * layer(x).sum(0))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_transforms_and_traces_of_a_layer(structure: str) -> None:
    torch.manual_seed(0)
    layer, x = KLinear(96, 96, structure=STRUCTURES[structure]), torch.randn(3, 96)
    want = layer(x)
    torch.testing.assert_close(torch.jit.trace(layer, (x,))(x), want)
    torch.testing.assert_close(torch.func.vmap(layer)(x[:, None])[:, 0], want)
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (x,))[1], want - layer.bias)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), want)
    with FakeTensorMode() as mode:
        fake = torch.func.functional_call(
            layer, {n: mode.from_tensor(p) for n, p in layer.named_parameters()}, mode.from_tensor(x)
        )
        assert fake.shape == want.shape


def test_a_matrix_with_a_path_is_traced_as_a_root() -> None:
    torch.manual_seed(0)
    matrix, x = KMatrix(96, structure=STRUCTURES["sum"]), torch.randn(3, 96)
    torch.testing.assert_close(torch.fx.symbolic_trace(matrix)(x), matrix(x))


def test_everyone_who_watches_a_path_sees_it() -> None:
    layer, x, seen = KLinear(96, 96, structure=STRUCTURES["sum"]), torch.randn(3, 96), []
    side = layer.matrix.side
    assert side is not None
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    layer(x)
    handle.remove()
    assert side in seen
    layer(x)
    assert seen.count(side) == 1
    forward = side.forward
    side.forward = lambda *given: seen.append(side) or forward(*given)  # type: ignore[method-assign]
    layer(x)
    assert seen.count(side) == 2


def test_recomputed_by_the_first_product_of_a_process() -> None:
    script = (
        "import torch; from torch.utils.checkpoint import checkpoint\n"
        "from ksurgeon.kmatrix.linear import KLinear\n"
        "from ksurgeon.kmatrix.structures import Kaleidoscope, Sum\n"
        "layer = KLinear(96, 96, structure=Sum(Kaleidoscope(), share=0.8))\n"
        "checkpoint(layer, torch.randn(3, 96), use_reentrant=False).sum().backward()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_selective_recomputation(structure: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 96, dtype=torch.float64, requires_grad=True)
    layer = KLinear(96, 96, structure=STRUCTURES[structure], dtype=torch.float64)
    kept = partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default])
    want = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    y = checkpoint(layer, x, use_reentrant=False, context_fn=kept)
    got = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


def test_frozen_parts_get_no_gradient() -> None:
    layer = KLinear(16, 16)
    layer.matrix.requires_grad_(False)
    x = torch.randn(3, 16, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and layer.bias.grad is not None
    assert all(factor.grad is None for factor in layer.matrix.factors)
    layer.matrix.requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert all(factor.grad is not None for factor in layer.matrix.factors)
