"""The compiled kernels against float64 dense products."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ksurgeon.kernels import apply_chain, cpu, reference
from ksurgeon.kernels.activation import ACTIVATIONS, activate
from ksurgeon.kernels.cpu import ops, pack, run
from ksurgeon.kernels.cpu.plan import Kind, candidates, merge_for_training
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix, Start
from ksurgeon.patterns.merge import merge_counts
from tests.chains import TOLERANCE, assert_near, chains, dense, drawn
from tests.kernels.layouts import LAYOUTS, exact, layer_of, vectors

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled")


class Doubled(nn.Module):
    def forward(self, factor: Tensor) -> Tensor:
        return 2 * factor


@settings(max_examples=100, deadline=None)
@given(
    shapes=chains(),
    dtype=st.sampled_from(list(TOLERANCE)),
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


@settings(max_examples=60, deadline=None)
@given(shapes=chains(), dtype=st.sampled_from([torch.float32, torch.bfloat16]), seed=st.integers(0, 2**20))
def test_infinity_reaches_only_the_outputs_that_depend_on_it(
    shapes: list[tuple[int, int, int, int]], dtype: torch.dtype, seed: int
) -> None:
    """Unless factors were merged, which have zeros where none of them had a weight."""
    torch.manual_seed(seed)
    factors = [torch.rand(shape).to(dtype) + 1 for shape in shapes]
    reached = dense(factors) != 0
    x = torch.rand(9, reached.shape[1]).to(dtype) + 1
    at = torch.randint(reached.shape[1], (9,))
    x[torch.arange(9), at] = torch.inf
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(pack, "choose", lambda patterns, *_: (1,) * len(patterns))
        assert torch.equal(cpu.apply_chain(x, factors, -1).isinf(), reached.mT[at])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [0, 1])
def test_half_precision_is_rounded_as_torch_rounds(dtype: torch.dtype, dim: int) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    x = every[:, None] if dim else every[None]
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    scale = torch.tensor(1.2345678).to(dtype)
    for factor in (one, one * scale):
        got, want = cpu.apply_chain(x, [factor], dim), (x.float() * factor[0, 0].float()).to(dtype)
        assert torch.equal(got.isnan(), x.isnan())
        # The processor's instructions for bfloat16 take subnormal numbers for zero.
        tiny = (x.abs() < 2**-126) | (want.abs() < 2**-126) if dtype is torch.bfloat16 else got.isnan()
        assert torch.equal(got[~tiny & ~x.isnan()], want[~tiny & ~x.isnan()])
        assert ((got == want) | (got == 0))[tiny & ~x.isnan()].all()


@pytest.mark.parametrize(
    ("shape", "dim"), [((5, 24), -1), ((2, 24, 3, 4), 1), ((24,), 0), ((0, 24), -1), ((2, 24, 3), 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_opcheck(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    matrix = KMatrix(24, 36, dtype=dtype)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    bias = torch.randn(36, dtype=dtype, requires_grad=True)
    torch.library.opcheck(ops.chain, (x, list(matrix.factors), bias, dim))


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("float16", "bfloat16"), ("float64", "float32")])
def test_vectors_of_another_dtype_are_refused_below_the_dispatcher(dtypes: tuple[str, str]) -> None:
    of_x, of_factors = (getattr(torch, name) for name in dtypes)
    factors = [factor.detach() for factor in KMatrix(24, 36, dtype=of_factors).factors]
    for call in (run.forward, ops.chain, ops.chain_inference):
        with pytest.raises(ValueError, match=f"dtype, {of_factors}, are needed, got {of_x}"):
            call(torch.randn(3, 24).to(of_x), factors, None, -1)


def test_factors_elsewhere_are_refused() -> None:
    with pytest.raises(ValueError, match="must be on the CPU"):
        cpu.apply_chain(torch.randn(3, 12), [torch.empty(3, 1, 2, 4, device="meta")], -1)


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
    assert not any("ksurgeon" in str(node.target) for node in exported.graph.nodes)
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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_second_call_obeys_what_the_first_did(layout: str) -> None:
    """Kept weights open a short cut; hooks, subclasses, modes and a changed backend are seen all the same."""
    layer, x, seen = layer_of(layout, 16, 16), vectors(layout, 2, 16), []
    want, bias = exact(layer, x).float(), layer.bias.view(-1, *[1] * (x.dim() - 2))

    class Odd(Tensor):
        pass

    with torch.no_grad():
        layer(x)
        torch.testing.assert_close(layer(x), want)
        hook = layer.register_forward_hook(lambda *_: seen.append(1))
        assert isinstance(layer(x.as_subclass(Odd)), Odd) and seen
        hook.remove()
        parametrize.register_parametrization(layer.matrix.factors, "0", Doubled())
        torch.testing.assert_close(layer(x) - bias, 2 * (want - bias))
        batches = torch.stack([x, x]).contiguous()
        torch.testing.assert_close(torch.func.vmap(layer)(batches)[1] - bias, 2 * (want - bias))


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
