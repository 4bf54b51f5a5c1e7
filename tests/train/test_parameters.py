"""The optimiser of a training."""

import pytest
import torch
from torch import nn

from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.train.parameters import make_optimiser
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
