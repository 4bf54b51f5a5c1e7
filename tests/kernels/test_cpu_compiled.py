"""Compiled inference takes the way of eager inference: the same kernels, merges and kept weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from ksurgeon.kernels import cpu, reference
from ksurgeon.kernels.cpu import ops, pack
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import Kaleidoscope, Monarch, Sum
from tests.chains import assert_near

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled")

LAYERS = {
    "chain": (lambda: KLinear(48, 96), (5, 48)),
    "sum": (lambda: KLinear(48, 48, structure=Sum(Monarch(), share=0.9)), (2, 9, 48)),
    "columns": (lambda: KPointwiseConv(24, 48), (2, 24, 5, 7)),
    "channels last": (lambda: KPointwiseConv(24, 48), (2, 24, 5, 7)),
}


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    torch.compiler.reset()


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[request.param]
    x = torch.randn(shape)
    if request.param == "channels last":
        x = x.to(memory_format=torch.channels_last)
    return make().eval(), x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_results_are_the_eager_ones(case: tuple[nn.Module, Tensor], dtype: torch.dtype) -> None:
    layer, x = case[0].to(dtype), case[1].to(dtype)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            want, got = layer(x), compiled(x)
        assert got.stride() == want.stride()
        assert torch.equal(got, want)  # both are our own kernels'


def test_compiled_inference_packs_as_eager_inference_does(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = KLinear(64, 64).eval(), torch.randn(3, 64)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        layer(x)
        kept = pack.record_of(layer.matrix.factors[0])
        monkeypatch.setattr(pack, "Pack", None)  # nothing is packed again
        compiled(x)
    assert kept is not None


@pytest.mark.parametrize(
    "write",
    [
        lambda factor: factor.mul_(2),
        lambda factor: factor.data.mul_(2),
        lambda factor: factor.detach().numpy().__imul__(2),
    ],
    ids=["in place", "data", "numpy"],
)
def test_writes_are_seen_by_compiled_models(write: object) -> None:
    layer, x = KLinear(64, 64, bias=False).eval(), torch.randn(3, 64)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        before = compiled(x)
        write(layer.matrix.factors[0])  # type: ignore[operator]
        torch.testing.assert_close(compiled(x), 2 * before)


@pytest.mark.parametrize(("parametrization", "at"), [("free", (-1, -1)), ("orthogonal", -1)])
def test_writes_inside_a_compiled_function_are_seen(parametrization: str, at: object) -> None:
    """Its code writes to tensors whose version changes when it ends; parts are compared from 512 KiB on."""
    structure = Kaleidoscope(parametrization=parametrization)
    layer = KLinear(8192, 8192, bias=False, structure=structure).requires_grad_(False).eval()
    written = next(layer.matrix.parameters())
    assert sum(parameter.nbytes for parameter in layer.parameters()) > 512 << 10

    def around(x: Tensor) -> tuple[Tensor, Tensor]:
        before = layer(x)
        written[at].mul_(1.5)
        return before, layer(x)

    compiled = torch.compile(around, fullgraph=True)
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(1, 8192)
            _, got = compiled(x)
            assert_near(got, reference.apply_chain(x, layer.matrix._held(), -1), torch.float32)


def test_an_operator_that_is_called_between_frames_is_no_frame_of_dynamo() -> None:
    factors, x = tuple(factor.detach() for factor in KMatrix(24, 36).factors), torch.randn(3, 24)

    def frames(operator: Callable[..., Tensor]) -> int:
        def around(x: Tensor) -> Tensor:
            try:
                torch._dynamo.graph_break()
                return operator(x, factors, None, -1)
            finally:
                pass

        torch.compiler.reset()
        counters.clear()
        with torch.no_grad():
            torch.compile(around, backend="eager")(x)
        return int(counters["frames"]["total"])

    assert frames(ops.chain_inference) == frames(ops.chain)  # which ``custom_op`` keeps Dynamo out of


def test_it_refuses_to_lose_gradients() -> None:
    matrix = KMatrix(24, 36)
    with pytest.raises(RuntimeError, match="has no gradients"):
        ops.chain_inference(torch.randn(3, 24), list(matrix.factors), None, -1)
    with torch.no_grad():
        graph = make_fx(matrix)(torch.randn(3, 24))
    x = torch.randn(3, 24, requires_grad=True)
    graph(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize(("shape", "dim"), [((5, 24), -1), ((2, 24, 3, 4), 1), ((0, 24), -1)])
def test_opcheck(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    factors = [factor.detach() for factor in KMatrix(24, 36, dtype=dtype).factors]
    x, bias = torch.randn(shape, dtype=dtype), torch.randn(36, dtype=dtype)
    activation = None if dtype.is_complex else "gelu"
    torch.library.opcheck(ops.chain_inference, (x, factors, bias, dim, activation))


def test_batches_of_it_are_computed_one_by_one() -> None:
    factors = [factor.detach() for factor in KMatrix(24, 36).factors]
    x = torch.randn(4, 5, 24)
    got = torch.vmap(lambda each: ops.chain_inference(each, factors, None, -1))(x)
    torch.testing.assert_close(got, ops.chain_inference(x, factors, None, -1))


def test_it_is_counted() -> None:
    matrix = KMatrix(64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        matrix(torch.randn(3, 64))
    assert counter.get_total_flops() == 2 * 3 * sum(factor.numel() for factor in matrix.factors)
