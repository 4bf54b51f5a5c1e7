"""Starts and variants of LoRA on K-layers: as on dense layers, or refused before anything is changed."""

import copy

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import SurgeryError

peft = pytest.importorskip("peft")
X = torch.randn(4, 64)


@pytest.fixture(scope="module")
def converted() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.Linear(32, 64)).eval()
    return ksurgeon.replace_modules(model, "linear", X)


def adapted(model: nn.Module, **options) -> nn.Module:
    torch.manual_seed(1)
    config = peft.LoraConfig(target_modules=["0", "2"], r=4, **options)
    return peft.get_peft_model(copy.deepcopy(model), config).eval()


@pytest.mark.parametrize("start", [True, "gaussian", "orthogonal"])
def test_starts_that_leave_the_weight(converted, start):
    torch.testing.assert_close(
        adapted(converted, init_lora_weights=start)(X), converted(X), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga"])
def test_starts_that_rewrite_the_weight_are_refused(converted, start, monkeypatch):
    from ksurgeon.integrations import peft as ours

    model = copy.deepcopy(converted)
    shape, expected = str(model), model(X)
    with pytest.raises(SurgeryError, match=f"{start}.*ksurgeon.revert"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["0", "2"], init_lora_weights=start))
    assert str(model) == shape and torch.equal(model(X), expected)
    if start in ("pissa", "olora"):  # one that the list of names does not have is caught as it writes
        monkeypatch.setattr(ours, "_REWRITING", ("none",))
        with pytest.raises(SurgeryError, match=f"{start}.*ksurgeon.revert"):
            adapted(converted, init_lora_weights=start)


@pytest.mark.parametrize("option", ["use_dora", "use_rslora", "lora_bias"])
def test_variants_as_on_the_reverted_layers(converted, option):
    dense = ksurgeon.revert(copy.deepcopy(converted))
    mine, theirs = (adapted(m, init_lora_weights=False, **{option: True}) for m in (converted, dense))
    torch.testing.assert_close(mine(X), theirs(X), rtol=1e-4, atol=1e-4)
    for model in (mine, theirs):
        model(X).square().mean().backward()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=False):
        if a.requires_grad and a.shape == b.shape:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)
