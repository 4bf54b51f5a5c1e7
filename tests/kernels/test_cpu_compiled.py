"""Compiled inference takes the way of eager inference: the same kernels, merges and kept weights."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ksurgeon.kernels import cpu
from ksurgeon.kernels.cpu import ops, pack
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import MonarchLowRank

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled")

LAYERS = {
    "chain": (lambda: KLinear(48, 96), (5, 48)),
    "sum": (lambda: KLinear(48, 48, structure=MonarchLowRank(share=0.9)), (2, 9, 48)),
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
