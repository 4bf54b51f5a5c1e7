"""The Triton kernels where only a GPU will do: large matrices, graphs, streams, compilation."""

from collections.abc import Iterator

import pytest
import torch

from ksurgeon.kernels import apply_chain, reference
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import Kaleidoscope
from tests.kernels.triton_cases import (
    DEVICE,
    GPU,
    TOLERANCE,
    error,
    exact_of,
    factors_of,
    poisoned_memory,
    triton_kernels,
)

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not GPU, reason="no GPU")


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> Iterator[None]:
    with triton_kernels():
        yield


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", [(1024, 1024), (768, 3072), (3072, 768), (4096, 4096), (16384, 16384)])
@pytest.mark.parametrize("rows", [1, 16, 77, 1500])
def test_large_matrices(sizes: tuple[int, int], rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    factors = factors_of(list(Kaleidoscope().patterns(*sizes)), dtype)
    x = torch.randn(rows, sizes[0]).to(DEVICE, dtype).requires_grad_()
    with poisoned_memory():
        y = apply_chain(x, factors)
        g = torch.randn_like(y)
        found = torch.autograd.grad(y, [x, *factors], g)
    exact, gradients = exact_of(x, factors, -1, None, g)
    assert error(y, exact) < TOLERANCE[dtype]
    for got, wanted in zip(found, gradients, strict=True):
        assert error(got, wanted) < TOLERANCE[dtype]


def test_cuda_graph_and_streams() -> None:
    matrix = KMatrix(1024, device=DEVICE, dtype=torch.bfloat16)
    x = torch.randn(4, 1024, device=DEVICE, dtype=torch.bfloat16)
    with torch.no_grad():
        wanted = matrix(x)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            assert torch.equal(matrix(x), wanted)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = matrix(x)
        x.mul_(2)
        graph.replay()
        assert torch.equal(y, 2 * wanted)


def test_training_in_a_cuda_graph_sees_new_factors() -> None:
    matrix = KMatrix(256, device=DEVICE)
    x = torch.randn(32, 256, device=DEVICE)
    for _ in range(2):
        matrix(x).sum().backward()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = matrix(x)
        y.sum().backward()
    with torch.no_grad():
        matrix.factors[0].mul_(3)
    graph.replay()
    assert torch.allclose(y, reference.apply_chain(x, list(matrix.factors), -1), rtol=1e-3, atol=1e-3)


def test_compiled_and_autocast() -> None:
    layer = KLinear(256, 256, device=DEVICE)
    x = torch.randn(32, 256, device=DEVICE)
    compiled = torch.compile(layer, fullgraph=True)
    assert torch.allclose(compiled(x), layer(x), atol=1e-4)
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert error(y, layer(x).detach().cpu().double()) < 2e-2
    y.sum().backward()
    assert all(
        factor.grad is not None and factor.grad.dtype == torch.float32 for factor in layer.parameters()
    )
