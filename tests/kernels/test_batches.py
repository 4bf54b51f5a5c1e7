"""Batches of gradients, and ``torch.func`` around compiled functions and recorded graphs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.fx.experimental.proxy_tensor import make_fx

from ksurgeon.kernels import cpu
from ksurgeon.kernels.cpu import ops
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.structures import Kaleidoscope, Structure, Sum

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled")

STRUCTURES: dict[str, Structure] = {"chain": Kaleidoscope(), "sum": Sum(Kaleidoscope(), share=0.8)}


@pytest.fixture(params=STRUCTURES)
def layer(request: pytest.FixtureRequest) -> KLinear:
    torch.manual_seed(0)
    return KLinear(96, 96, structure=STRUCTURES[request.param], dtype=torch.float64)


def drawn(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vectorised_derivatives(layer: KLinear, strategy: str) -> None:
    def loss(x: Tensor) -> Tensor:
        return layer(x).tanh().sum()

    x = drawn(96)
    torch.testing.assert_close(jacobian(layer, x, vectorize=True, strategy=strategy), layer.weight)
    got = hessian(loss, x, vectorize=True, outer_jacobian_strategy=strategy)
    torch.testing.assert_close(got, hessian(loss, x))


def batched(y: Tensor, leaves: list[Tensor], g: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, leaves, g, is_grads_batched=True, retain_graph=True)


def mapped(y: Tensor, leaves: list[Tensor], g: Tensor) -> tuple[Tensor, ...]:
    return torch.vmap(lambda g: torch.autograd.grad(y, leaves, g, retain_graph=True))(g)


@pytest.mark.parametrize("gradients", [batched, mapped])
def test_batches_of_gradients(layer: KLinear, gradients: Callable[..., tuple[Tensor, ...]]) -> None:
    x, g = drawn(3, 96), drawn(5, 3, 96)
    y, leaves = layer(x), [x, *layer.parameters()]
    together = gradients(y, leaves, g)
    for k, each in enumerate(g):
        wanted = torch.autograd.grad(y, leaves, each, retain_graph=True)
        for got, want in zip(together, wanted, strict=True):
            torch.testing.assert_close(got[k], want)


def test_gradients_are_checked_in_batches(layer: KLinear) -> None:
    x = (drawn(2, 96),)
    assert torch.autograd.gradcheck(layer, x, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, x, check_batched_grad=True, fast_mode=True)


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.jacrev, torch.func.jacfwd])
def test_transforms_are_compiled(layer: KLinear, transform: Callable[..., Callable[..., Tensor]]) -> None:
    x = drawn(3, 96).detach()
    derived = transform(lambda x: layer(x))  # torch.vmap asks a module without a name for its repr
    compiled = torch.compile(derived, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), derived(x))


def test_batches_of_a_recorded_operator(layer: KLinear) -> None:
    x = drawn(2, 5, 3, 96).detach()
    graph = make_fx(layer)(x[0, 0])
    assert "ksurgeon.chain" in graph.code
    torch.testing.assert_close(torch.vmap(graph)(x[0]), layer(x[0]))
    torch.testing.assert_close(torch.vmap(torch.vmap(graph), 1, 1)(x), layer(x))


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_batches_of_the_operators(layer: KLinear, needs: tuple[bool, bool]) -> None:
    factors = [torch.stack([factor.detach(), -2 * factor.detach()]) for factor in layer.matrix.factors]
    x, g, bias = drawn(2, 3, 96).detach(), drawn(2, 3, 96).detach(), drawn(96).detach()

    def forward(x: Tensor, *factors: Tensor) -> Tensor:
        return ops.chain(x, list(factors), bias, -1)

    def backward(g: Tensor, x: Tensor, *factors: Tensor) -> list[Tensor]:
        return ops.chain_backward(g, x, list(factors), -1, *needs)

    for k in range(2):
        one = [factor[k] for factor in factors]
        torch.testing.assert_close(torch.vmap(forward)(x, *factors)[k], forward(x[k], *one))
        for got, want in zip(torch.vmap(backward)(g, x, *factors), backward(g[k], x[k], *one), strict=True):
            torch.testing.assert_close(got[k], want)
