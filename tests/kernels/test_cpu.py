"""The compiled kernels against float64 dense products, and the promises around them."""

import copy
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ksurgeon.errors import StructureError
from ksurgeon.kernels import apply_chain, available_backends, cpu, dispatch, reference
from ksurgeon.kernels.cpu import ops
from ksurgeon.kernels.cpu.plan import merge_for_columns, merge_for_rows, merge_for_training
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.merge import merge_counts
from ksurgeon.kmatrix.patterns import Pattern

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled")

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


@st.composite
def chains(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """Shapes (a, d, b, c) of a chain of one to three factors."""
    size = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 11, 16, 17])
    a, d, c = draw(size), draw(size), draw(st.sampled_from([1, 2, 3, 4, 8, 9]))
    shapes, features = [], a * c * d
    for _ in range(draw(st.integers(1, 3))):
        if shapes:
            d = draw(st.sampled_from(divisors(features)))
            c = draw(st.sampled_from(divisors(features // d)[:6]))
            a = features // d // c
        b = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 9, 17] if a * d < 200 else [1, 2, 3]))
        shapes.append((a, d, b, c))
        features = a * b * d
    return shapes


def dense(factors: list[Tensor]) -> Tensor:
    """The product as an ordinary matrix in float64, entry by entry from the definition."""
    product = None
    for factor in factors:
        a, d, b, c = factor.shape
        matrix = torch.zeros(a, b, d, a, c, d, dtype=torch.float64)
        for k in range(d):
            for j in range(a):
                matrix[j, :, k, j, :, k] = factor[j, k].double()
        flat = matrix.reshape(a * b * d, a * c * d)
        product = flat if product is None else flat @ product
    assert product is not None
    return product


def assert_near(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    assert got.shape == want.shape and got.dtype == dtype
    if want.numel():
        scale = want.abs().max().clamp(min=1e-3)
        assert ((got.double() - want).abs().max() / scale) < TOLERANCE[dtype]


@settings(max_examples=150, deadline=None)
@given(
    shapes=chains(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
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
    factors = [(torch.randn(shape) / shape[3] ** 0.5).to(dtype) for shape in shapes]
    matrix = dense(factors)
    outputs, inputs = matrix.shape
    x, dim = torch.randn(*before, inputs, *after).to(dtype), len(before)
    if layout == "last":
        x = x.movedim(dim, -1).contiguous().movedim(-1, dim)
    elif layout == "sliced":
        x = torch.stack([x, x], -1)[..., 0]
    bias = torch.randn(outputs).to(dtype) if with_bias else None
    want = (x.double().movedim(dim, -1) @ matrix.T).movedim(-1, dim)
    if bias is not None:
        want = want + bias.double().view(-1, *[1] * len(after))
    kept = x.clone()
    got = ops.chain(x, factors, bias, dim) if light else cpu.apply_chain(x, factors, dim, bias)
    assert_near(got, want, dtype)
    assert torch.equal(x, kept)


@settings(max_examples=60, deadline=None)
@given(
    shapes=chains(),
    rows=st.sampled_from([0, 1, 3, 40, 70]),
    dim=st.sampled_from([0, 1]),
    seed=st.integers(0, 2**20),
)
def test_gradients_are_those_of_the_reference(
    shapes: list[tuple[int, int, int, int]], rows: int, dim: int, seed: int
) -> None:
    torch.manual_seed(seed)
    factors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    inputs, outputs = Pattern.of(shapes[0]).in_features, Pattern.of(shapes[-1]).out_features
    x = torch.randn((inputs, rows) if dim == 0 else (rows, inputs), dtype=torch.float64, requires_grad=True)
    bias = torch.randn(outputs, dtype=torch.float64, requires_grad=True)
    y = ops.chain(x, factors, bias, dim)
    g = torch.randn_like(y)
    wanted = torch.autograd.grad(reference.apply_chain(x, factors, dim, bias), [x, bias, *factors], g)
    for got, want in zip(torch.autograd.grad(y, [x, bias, *factors], g), wanted, strict=True):
        assert_near(got, want, torch.float64)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    matrix = KMatrix(12, 18, dtype=torch.float64)
    x = torch.randn(2, 12, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(18, dtype=torch.float64, requires_grad=True)

    def apply(x: Tensor, bias: Tensor, *factors: Tensor) -> Tensor:
        return ops.chain(x, list(factors), bias, 1)

    inputs = (x, bias, *matrix.factors)
    assert torch.autograd.gradcheck(apply, inputs)
    assert torch.autograd.gradgradcheck(apply, inputs)


@pytest.mark.parametrize(
    ("shape", "dim"), [((5, 24), -1), ((2, 24, 3, 4), 1), ((24,), 0), ((0, 24), -1), ((2, 24, 3), 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    matrix = KMatrix(24, 36, dtype=dtype)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    bias = torch.randn(36, dtype=dtype, requires_grad=True)
    torch.library.opcheck(ops.chain, (x, list(matrix.factors), bias, dim))


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


def outputs_of(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the layer gives by the kernels, and by its dense matrix in float64."""
    with torch.inference_mode():
        got = layer(x)
    factors = [factor.detach().clone() for factor in layer.matrix.factors]
    return got, x.double() @ dense(factors).T + layer.bias.detach().double()


@pytest.mark.parametrize("rows", [1, 40])
def test_no_change_of_the_factors_goes_unseen(rows: int) -> None:
    torch.manual_seed(0)
    layer, x = KLinear(64, 64), torch.randn(rows, 64)

    def check() -> None:
        assert_near(*outputs_of(layer, x), torch.float32)

    check()
    with torch.no_grad():
        layer.matrix.factors[2][0, 0, 0, 0] += 3
    check()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    layer(x).square().sum().backward()
    torch.optim.Adam(layer.parameters(), lr=0.1).step()
    check()
    layer.matrix.factors[1].data = torch.randn_like(layer.matrix.factors[1])
    check()
    layer.matrix.factors[0].data.mul_(-2)
    check()
    layer.matrix.factors[0] = nn.Parameter(torch.randn_like(layer.matrix.factors[0]))
    check()
    layer.load_state_dict({name: torch.randn_like(value) for name, value in layer.state_dict().items()})
    check()
    layer.double().float()
    check()
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.matrix.factors[3].neg_()
    assert_near(*outputs_of(other, x), torch.float32)
    check()
    restored = pickle.loads(pickle.dumps(layer))
    assert_near(*outputs_of(restored, x), torch.float32)


def test_writes_past_the_version_counter_are_seen_where_all_is_compared() -> None:
    layer, x = KLinear(64, 64), torch.randn(40, 64)
    outputs_of(layer, x)
    for factor in layer.matrix.factors:
        for k in (0, 7, factor.numel() - 1):
            factor.detach().numpy().reshape(-1)[k] += 1
            assert_near(*outputs_of(layer, x), torch.float32)


def test_factors_made_in_inference_mode_are_never_stale() -> None:
    with torch.inference_mode():
        layer, x = KLinear(32, 32), torch.randn(1, 32)
        for _ in range(3):
            layer.matrix.factors[0][0, 0, 0, 0] += 1
            got = layer(x)
            want = x.double() @ dense(list(layer.matrix.factors)).T + layer.bias.double()
            assert_near(got, want, torch.float32)


def test_packs_die_with_their_factors() -> None:
    from ksurgeon.kernels.cpu import pack

    layer = KLinear(32, 32)
    before = len(pack._PACKS)
    with torch.inference_mode():
        layer(torch.randn(2, 32))
    assert len(pack._PACKS) == before + 1
    del layer
    assert len(pack._PACKS) == before


@pytest.mark.parametrize("counts", [merge_for_rows, merge_for_columns])
@pytest.mark.parametrize("sizes", [(256, 256), (96, 768), (3072, 768), (58, 58)])
def test_merging_keeps_the_product(counts: object, sizes: tuple[int, int]) -> None:
    matrix = KMatrix(*sizes, dtype=torch.float64)
    factors, patterns = list(matrix.factors), tuple(matrix.patterns)
    x = torch.randn(3, patterns[0].in_features, dtype=torch.float64)
    for plan in (counts(patterns, 16), merge_for_training(patterns)):  # type: ignore[operator]
        assert sum(plan) == len(factors)
        got = reference.apply_chain(x, merge_counts(factors, plan), -1)
        torch.testing.assert_close(got, reference.apply_chain(x, factors, -1))


def test_compile_and_export_give_the_same_numbers() -> None:
    torch.manual_seed(0)
    layer, x = KLinear(32, 48), torch.randn(5, 32)
    want = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), want)
    compiled(x).sum().backward()
    got = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    layer(x).sum().backward()
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


@pytest.mark.parametrize("transform", ["vmap", "jacrev", "jacfwd", "autocast", "complex"])
def test_what_the_kernels_leave_to_the_reference(transform: str) -> None:
    torch.manual_seed(0)
    layer, x = KLinear(8, 12), torch.randn(3, 8)
    if transform == "vmap":
        torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    elif transform == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    elif transform == "complex":
        layer = KLinear(8, 12, dtype=torch.complex64)
        want = x.to(torch.complex64) @ layer.weight.T + layer.bias
        torch.testing.assert_close(layer(x), want)
    else:
        jacobian = getattr(torch.func, transform)(layer)(x[0])
        torch.testing.assert_close(jacobian, layer.weight)


def test_wrong_arguments_raise_before_native_code() -> None:
    factors = list(KMatrix(16, 16).factors)
    with pytest.raises(ValueError, match="takes vectors of 16"):
        cpu.apply_chain(torch.randn(3, 15), [f.detach() for f in factors], -1)
    with pytest.raises(ValueError, match="bias must have shape"):
        cpu.apply_chain(torch.randn(3, 16), [f.detach() for f in factors], -1, torch.randn(15))
    first = factors[0].detach()
    with pytest.raises(ValueError, match="one dtype"):
        cpu.apply_chain(torch.randn(3, 16), [factors[0].detach(), factors[1].detach().double()], -1)
    with pytest.raises(StructureError, match="do not compose"):
        cpu.apply_chain(torch.randn(3, 16), [first, torch.randn(1, 1, 4, 5)], -1)


def test_lazily_negated_tensors() -> None:
    pairs = torch.randn(3, 16, dtype=torch.complex64).conj()
    x, factors = pairs.imag, [factor.detach() for factor in KMatrix(16, 16).factors]
    assert x.is_neg()
    want = reference.apply_chain(x.resolve_neg(), factors, -1)
    torch.testing.assert_close(cpu.apply_chain(x, factors, -1, torch.zeros(16)), want)


def test_the_short_way_for_few_rows_holds_no_references() -> None:
    layer, x = KLinear(64, 32), torch.randn(2, 64)
    with torch.inference_mode():
        want = layer(x).clone()
        held = [x, layer.bias, layer.matrix.factors[0], x.dtype, torch.empty_like]
        before = [sys.getrefcount(thing) for thing in held]
        for _ in range(200):
            assert torch.equal(layer(x), want)
        assert [sys.getrefcount(thing) for thing in held] == before
        assert layer(x[:, ::2].repeat(1, 2)).shape == (2, 32)
        with pytest.raises(ValueError, match="expected 64 entries"):
            layer(x[:, :63])


def test_permutations_run_as_an_index_copy() -> None:
    permutation = torch.randperm(24)
    matrix = KMatrix.from_permutation(permutation)
    for dim, shape in ((1, (3, 24)), (1, (2, 24, 5, 5)), (0, (24, 3))):
        x = torch.randn(shape)
        with torch.inference_mode():
            assert torch.equal(matrix(x, dim), x.index_select(dim, permutation))


def test_threads_change_nothing() -> None:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    layer, conv = KLinear(512, 512), KPointwiseConv(128, 128)
    images = torch.randn(2, 128, 14, 14)
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            x = torch.randn(300, 512, generator=torch.Generator().manual_seed(1), requires_grad=True)
            y = layer(x)
            layer.zero_grad()
            y.square().mean().backward()
            with torch.inference_mode():
                results.append(
                    [y, layer(x[:1]), layer(x), conv(images), x.grad, layer.matrix.factors[0].grad.clone()]
                )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_calls_from_many_threads() -> None:
    layer = KLinear(256, 256)
    inputs = [torch.randn(64, 256) for _ in range(4)]
    with torch.inference_mode():
        wanted = [layer(x) for x in inputs]
    failures = []

    def work(k: int) -> None:
        with torch.inference_mode():
            for _ in range(50):
                if not torch.equal(layer(inputs[k]), wanted[k]):
                    failures.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


_SCRIPT = """
import torch
from ksurgeon.kernels.cpu import apply_chain, instruction_set
from ksurgeon.kernels import reference
torch.manual_seed(0)
for shapes in ([(4, 3, 5, 6)], [(1, 64, 4, 4), (16, 1, 4, 16)], [(8, 8, 8, 8), (64, 1, 3, 8)]):
    for dtype in (torch.float32, torch.float64):
        factors = [torch.randn(s, dtype=dtype) for s in shapes]
        inputs = shapes[0][0] * shapes[0][1] * shapes[0][3]
        for size in ((7, inputs), (2, inputs, 19)):
            x, dim = torch.randn(size, dtype=dtype), 1
            want = reference.apply_chain(x.double(), [f.double() for f in factors], dim)
            got = apply_chain(x, factors, dim)
            assert ((got - want).abs().max() / want.abs().max()) < (1e-5 if dtype == torch.float32 else 1e-13)
print(instruction_set())
"""


@pytest.mark.parametrize("name", ["portable", "avx2", "avx512"])
def test_every_instruction_set(name: str) -> None:
    levels = ["portable", "avx2", "avx512"]
    if levels.index(name) > levels.index(cpu.instruction_set()):
        pytest.skip(f"this machine has no {name}")
    environment = os.environ | {"KSURGEON_CPU_ISA": name}
    done = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == name, done.stderr


def test_the_backend_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_backends()[-1] == "cpu"
    factors = [torch.randn(2, 3, 4, 5)]
    x = torch.randn(2, 30)
    for name in ("cpu", "reference"):
        monkeypatch.setenv("KSURGEON_BACKEND", name)
        monkeypatch.setattr(dispatch, "_chosen", None)
        want = apply_chain(x, factors)
        assert dispatch._chosen is dispatch._BACKENDS[name]
    monkeypatch.setattr(dispatch, "_chosen", dispatch._BACKENDS["cpu"])
    torch.testing.assert_close(apply_chain(x, factors), want)
