"""The optimiser of a training."""

import pytest
import torch
from torch import nn

from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.train.clock import rate_at
from ksurgeon.train.parameters import balance_factors, make_optimiser
from ksurgeon.train.settings import make_settings


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
def test_every_dtype_is_stepped_and_only_matrices_decay(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(KLinear(8, 8, dtype=dtype), nn.Linear(8, 8, dtype=dtype))
    optimiser = make_optimiser(model, make_settings(lr=0.1, factor_lr=0.5, weight_decay=0.01))
    assert all(
        group["fused"] is (True if dtype.is_floating_point else None) for group in optimiser.param_groups
    )
    by_dimensions = sorted(optimiser.param_groups, key=lambda group: -group["params"][0].dim())
    factors, matrices, vectors = by_dimensions
    assert [g["weight_decay"] for g in (factors, matrices, vectors)] == [0, 0.01, 0]
    assert [g["lr"] for g in (factors, matrices, vectors)] == [0.05, 0.1, 0.1]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(torch.randn(4, 8).to(dtype)).abs().sum().backward()
    optimiser.step()
    assert all(not torch.equal(new, old) for new, old in zip(model.parameters(), before, strict=True))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_what_lies_between_other_memory_is_not_fused():
    pool = torch.randn(8, 12)
    before = pool.clone()
    layer = nn.Linear(8, 8, bias=False)
    layer.weight = nn.Parameter(pool[:, 2:10])
    optimiser = make_optimiser(layer, make_settings(lr=0.1))
    layer(torch.randn(4, 8)).sum().backward()
    optimiser.step()
    assert torch.equal(pool[:, :2], before[:, :2]) and torch.equal(pool[:, 10:], before[:, 10:])
    assert not torch.isclose(pool[:, 2:10], before[:, 2:10]).any()


def test_sgd_decays_neither_factors_nor_norms_nor_depthwise_convolutions():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4), nn.LayerNorm((4, 5)), nn.Conv2d(4, 8, 1), KLinear(8, 8)
    )
    model.map = nn.Module()
    model.map.bias = nn.Parameter(torch.ones(3, 3))
    how = {"optimiser": "sgd", "lr": 0.1, "weight_decay": 0.5, "decay_depthwise": False}
    optimiser = make_optimiser(model, make_settings(momentum=0.8, **how))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
    for name, parameter in model.named_parameters():
        share = 0.95 * 0.95 - 0.8 * 0.05 if name == "2.weight" else 1.0  # the second step has the momentum
        torch.testing.assert_close(parameter.detach(), share * before[name])
    (group,) = [g for g in optimiser.param_groups if g["weight_decay"]]
    assert len(group["params"]) == 1 and not group["nesterov"]


def test_momentum_follows_factors_that_are_evened():
    layer = KLinear(8, 8)
    optimiser = make_optimiser(layer, make_settings(optimiser="sgd"))
    with torch.no_grad():
        layer.matrix.factors[0].mul_(100)
    layer(torch.randn(4, 8)).sum().backward()
    optimiser.step()
    factor = layer.matrix.factors[0]
    product = optimiser.state[factor]["momentum_buffer"] * factor.detach()
    before = factor.detach().clone()
    balance_factors(layer, optimiser)
    assert not torch.allclose(factor, before)
    torch.testing.assert_close(optimiser.state[factor]["momentum_buffer"] * factor.detach(), product)


def test_rates_fall_step_by_step_after_the_warm_up():
    settings = make_settings(schedule="multistep", warmup=0.1, milestones=(0.5, 0.75), gamma=0.1)
    rates = [rate_at(progress, settings) for progress in (0.05, 0.1, 0.49, 0.5, 0.74, 0.75, 1.0)]
    assert rates == pytest.approx([0.5, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert rate_at(0.9, make_settings(schedule="constant", warmup=0.0)) == 1
