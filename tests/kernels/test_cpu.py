"""The compiled kernels against float64 dense products."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from ksurgeon.kernels import apply_chain, cpu, reference
from ksurgeon.kernels.activation import ACTIVATIONS, activate
from ksurgeon.kernels.cpu import ops
from ksurgeon.kernels.cpu.beside import train_beside
from ksurgeon.kernels.cpu.pack import Pack
from ksurgeon.kernels.cpu.plan import Kind, candidates, merge_for_training
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix, Start
from ksurgeon.kmatrix.merge import merge_counts
from ksurgeon.kmatrix.patterns import Pattern
from ksurgeon.kmatrix.structures.sums import KaleidoscopeLowRank
from tests.chains import assert_near, chains, dense

DTYPES = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
}
"""What the kernels take, and what to draw it in."""


def drawn(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=DTYPES[dtype]).to(dtype)


class Doubled(nn.Module):
    def forward(self, factor: Tensor) -> Tensor:
        return 2 * factor


pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled")


@settings(max_examples=100, deadline=None)
@given(
    shapes=chains(),
    dtype=st.sampled_from(list(DTYPES)),
    before=st.sampled_from([(), (1,), (3,), (0,), (2, 5), (37,), (70,)]),
    after=st.sampled_from([(), (1,), (7,), (0,), (3, 5), (50,), (70,)]),
    layout=st.sampled_from(["contiguous", "last", "sliced"]),
    with_bias=st.booleans(),
    light=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_forward_equals_the_dense_product(
    shapes: list[tuple[int, int, int, int]],
    dtype: torch.dtype,
    before: tuple[int, ...],
    after: tuple[int, ...],
    layout: str,
    with_bias: bool,
    light: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    factors = [drawn(dtype, *shape) / shape[3] ** 0.5 for shape in shapes]
    matrix = dense(factors)
    outputs, inputs = matrix.shape
    x, dim = drawn(dtype, *before, inputs, *after), len(before)
    if layout == "last":
        x = x.movedim(dim, -1).contiguous().movedim(-1, dim)
    elif layout == "sliced":
        x = torch.stack([x, x], -1)[..., 0]
    bias = drawn(dtype, outputs) if with_bias else None
    want = (x.to(matrix.dtype).movedim(dim, -1) @ matrix.T).movedim(-1, dim)
    if bias is not None:
        want = want + bias.to(matrix.dtype).view(-1, *[1] * len(after))
    kept = x.clone()
    got = ops.chain(x, factors, bias, dim) if light else cpu.apply_chain(x, factors, dim, bias)
    assert_near(got, want, dtype)
    assert torch.equal(x, kept)


@settings(max_examples=100, deadline=None)
@given(
    shapes=chains(),
    dtype=st.sampled_from(list(DTYPES)),
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [0, 1])
def test_half_precision_is_rounded_as_torch_rounds(dtype: torch.dtype, dim: int) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    x = every[:, None] if dim else every[None]
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    got = cpu.apply_chain(x, [one], dim)
    assert torch.equal(got.isnan(), x.isnan())
    assert torch.equal(got[~x.isnan()], x[~x.isnan()])
    scale = torch.tensor(1.2345678).to(dtype)
    got = cpu.apply_chain(x, [one * scale], dim)
    want = (x.float() * scale.float()).to(dtype)
    assert torch.equal(got[~x.isnan()], want[~x.isnan()])


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


@pytest.mark.parametrize(
    ("shape", "dim"), [((5, 24), -1), ((2, 24, 3, 4), 1), ((24,), 0), ((0, 24), -1), ((2, 24, 3), 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_opcheck(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    matrix = KMatrix(24, 36, dtype=dtype)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    bias = torch.randn(36, dtype=dtype, requires_grad=True)
    torch.library.opcheck(ops.chain, (x, list(matrix.factors), bias, dim))


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
    structure = KaleidoscopeLowRank(share=0.8)
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
    for other in (x.double(), torch.randn(96, 5).T.requires_grad_(), x.detach()):
        wide = layer.double() if other.dtype == torch.float64 else layer.float()
        assert wide(other).shape == (5, 96)
    with pytest.raises(ValueError, match="expected 96 entries"):
        layer.float()(torch.randn(5, 23, requires_grad=True))


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
    for changed in range(3):
        x, factors = _parts()
        y = TRAINED[way](x, factors)
        with torch.no_grad():
            (x if changed == 2 else factors[-1 - changed]).mul_(2)
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
    assert len(unpacked) <= len(factors) + 3  # each of them once, and what square() keeps
    for kept, leaf in zip(want, (x, factors[-1]), strict=True):
        torch.testing.assert_close(leaf.grad, kept)
        leaf.grad = None
    checkpoint(lambda x: TRAINED[way](x, factors).square().sum(), x, use_reentrant=reentrant).backward()
    for kept, leaf in zip(want, (x, factors[-1]), strict=True):
        torch.testing.assert_close(leaf.grad, kept)


def test_selective_recomputation() -> None:
    x, _ = _parts()
    layer = KLinear(12, 12, dtype=torch.float64)
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


@pytest.mark.parametrize("kind", ["few", "rows", "columns"])
@pytest.mark.parametrize("sizes", [(256, 256), (96, 768), (3072, 768), (58, 58)])
def test_merging_keeps_the_product(kind: Kind, sizes: tuple[int, int]) -> None:
    matrix = KMatrix(*sizes, dtype=torch.float64)
    factors, patterns = list(matrix.factors), tuple(matrix.patterns)
    x = torch.randn(3, patterns[0].in_features, dtype=torch.float64)
    plans = candidates(patterns, torch.float64, kind)
    assert len(set(plans)) == len(plans)
    for plan in (*plans, merge_for_training(patterns)):
        assert sum(plan) == len(factors)
        got = reference.apply_chain(x, merge_counts(factors, plan), -1)
        torch.testing.assert_close(got, reference.apply_chain(x, factors, -1))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_are_those_of_torch(activation: str, dtype: torch.dtype) -> None:
    values = torch.cat([torch.linspace(-12, 12, 24_001), torch.tensor([-1e4, 1e4, 0.0, 1e-8, -1e-8])])
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    got = cpu.apply_chain(values.to(dtype)[:, None], [one], -1, None, activation)[:, 0]
    want = activate(values.double(), activation)
    assert ((got - want).abs() / want.abs().clamp(min=1)).max() < (1e-6 if dtype == torch.float32 else 1e-14)
    assert (
        cpu.apply_chain(torch.full((3, 1), torch.nan), [torch.ones(1, 1, 1, 1)], -1, None, activation)
        .isnan()
        .all()
    )


@settings(max_examples=60, deadline=None)
@given(
    shapes=chains(),
    activation=st.sampled_from(list(ACTIVATIONS)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    rows=st.sampled_from([1, 3, 40]),
    dim=st.sampled_from([0, 1]),
    gradients=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_activations_follow_the_bias(
    shapes: list[tuple[int, int, int, int]],
    activation: str,
    dtype: torch.dtype,
    rows: int,
    dim: int,
    gradients: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    factors = [(torch.randn(shape) / shape[3] ** 0.5).to(dtype) for shape in shapes]
    matrix = dense(factors)
    outputs, inputs = matrix.shape
    x = torch.randn((inputs, rows) if dim == 0 else (rows, inputs)).to(dtype).requires_grad_(gradients)
    bias = torch.randn(outputs).to(dtype)
    got = apply_chain(x, factors, dim, bias, activation)
    linear = (x.detach().double().movedim(dim, -1) @ matrix.T + bias.double()).movedim(-1, dim)
    assert_near(got.detach(), activate(linear, activation), dtype)
    assert got.requires_grad == gradients
    if gradients:
        got.sum().backward()
        assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_compile_and_export_give_the_same_numbers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = KLinear(32, 48, dtype=dtype), torch.randn(5, 32, dtype=dtype)
    want = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), want)
    compiled(x).abs().sum().backward()
    got = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    layer(x).abs().sum().backward()
    for one, parameter in zip(got, layer.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)
    exported = torch.export.export(layer, (x,))
    assert any("ksurgeon.chain" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), want)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), want)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_pointwise_convolution(memory_format: torch.memory_format, size: int) -> None:
    torch.manual_seed(0)
    layer = KPointwiseConv(24, 40, groups=2)
    x = torch.randn(3, 24, size, size).contiguous(memory_format=memory_format)
    want = nn.functional.conv2d(x, layer.weight, layer.bias, groups=2)
    got = layer(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert got.is_contiguous(memory_format=memory_format)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", ["random", "identity"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [1, 7])
def test_what_follows_may_work_in_place(start: Start, memory_format: torch.memory_format, size: int) -> None:
    layer = KPointwiseConv(12, 12, start=start)
    x = torch.randn(2, 12, size, size).to(memory_format=memory_format)
    layer(x).relu_().sum().backward()
    expected = torch.relu(nn.functional.conv2d(x, layer.weight, layer.bias))
    assert layer.bias is not None and layer.bias.grad is not None
    torch.testing.assert_close(layer.bias.grad, (expected > 0).sum((0, 2, 3)).to(x.dtype))


@pytest.mark.parametrize("transform", ["vmap", "jacrev", "jacfwd", "autocast", "real"])
def test_what_the_kernels_leave_to_the_reference(transform: str) -> None:
    torch.manual_seed(0)
    layer, x = KLinear(8, 12), torch.randn(3, 8)
    if transform == "vmap":
        torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    elif transform == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    elif transform == "real":
        layer = KLinear(8, 12, dtype=torch.complex64)
        want = x.to(torch.complex64) @ layer.weight.T + layer.bias
        torch.testing.assert_close(layer(x), want)
    else:
        jacobian = getattr(torch.func, transform)(layer)(x[0])
        torch.testing.assert_close(jacobian, layer.weight)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("gradients", [False, True])
def test_jit_trace_records_the_product(gradients: bool) -> None:
    layer = KLinear(8, 12)
    with torch.set_grad_enabled(gradients):
        layer(torch.randn(1, 8))
        traced = torch.jit.trace(layer, (torch.randn(1, 8),), check_trace=False)
    x = torch.randn(1, 8)
    torch.testing.assert_close(traced(x), layer(x))


def test_lazily_negated_tensors() -> None:
    pairs = torch.randn(3, 16, dtype=torch.complex64).conj()
    x, factors = pairs.imag, [factor.detach() for factor in KMatrix(16, 16).factors]
    assert x.is_neg()
    want = reference.apply_chain(x.resolve_neg(), factors, -1)
    torch.testing.assert_close(cpu.apply_chain(x, factors, -1, torch.zeros(16)), want)


def test_a_second_call_obeys_what_the_first_did() -> None:
    """Kept weights open a short cut; hooks, subclasses, modes and a changed backend are seen all the same."""
    layer, x, seen = KLinear(16, 16), torch.randn(2, 16), []
    want = x @ layer.weight.T + layer.bias

    class Odd(Tensor):
        pass

    with torch.no_grad():
        layer(x)
        torch.testing.assert_close(layer(x), want)
        hook = layer.register_forward_hook(lambda *_: seen.append(1))
        assert isinstance(layer(x.as_subclass(Odd)), Odd) and seen
        hook.remove()
        parametrize.register_parametrization(layer.matrix.factors, "0", Doubled())
        torch.testing.assert_close(layer(x) - layer.bias, 2 * (want - layer.bias))
        torch.testing.assert_close(torch.func.vmap(layer)(x) - layer.bias, 2 * (want - layer.bias))


def test_lazily_conjugated_tensors_and_activations_of_complex_numbers() -> None:
    layer = KLinear(16, 16, dtype=torch.complex64)
    layer.bias = nn.Parameter(layer.bias.detach().conj())
    factors = [factor.detach().conj() for factor in layer.matrix.factors]
    x = torch.randn(3, 16, dtype=torch.complex64).conj()
    assert x.is_conj() and factors[0].is_conj() and layer.bias.is_conj()
    want = reference.apply_chain(x.resolve_conj(), [factor.resolve_conj() for factor in factors], -1)
    with torch.inference_mode():
        for _ in range(2):
            torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)
            torch.testing.assert_close(apply_chain(x, factors), want)
        with pytest.raises(RuntimeError):
            apply_chain(x.resolve_conj(), factors, -1, None, "relu")


def test_permutations_run_as_an_index_copy() -> None:
    permutation = torch.randperm(24)
    matrix = KMatrix.from_permutation(permutation)
    for dim, shape in ((1, (3, 24)), (1, (2, 24, 5, 5)), (0, (24, 3))):
        x = torch.randn(shape)
        with torch.inference_mode():
            assert torch.equal(matrix(x, dim), x.index_select(dim, permutation))
