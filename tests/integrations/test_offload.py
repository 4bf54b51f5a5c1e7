"""Converted models under accelerate's hooks, which keep weights elsewhere or move inputs."""

import copy

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import ExportError, KLinear, MatchError, SurgeryError
from ksurgeon.rules.schema import Rule

accelerate = pytest.importorskip("accelerate")
from accelerate.hooks import remove_hook_from_module  # noqa: E402

X = torch.randn(2, 64)
IMAGE = torch.randn(2, 64, 4, 4)
SUM = Rule(
    name="sum",
    replace=[
        {
            "find": "linear",
            "with": {"structure": "monarch+low_rank", "block_rank": 1, "rank": 2},
            "start": "random",
        }
    ],
)
MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)), "linear", X),
    "sum": (lambda: nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)), SUM, X),
    "conv": (lambda: nn.Sequential(nn.Conv2d(64, 64, 1), nn.Conv2d(64, 32, 1)), "pointwise", IMAGE),
    "shuffle": (lambda: nn.Sequential(nn.Conv2d(64, 64, 1), nn.ChannelShuffle(4)), "shuffle", IMAGE),
}


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("name", MODELS)
def test_offloaded_factors_are_fetched(name, where, tmp_path):
    make, rule, x = MODELS[name]
    model = ksurgeon.replace_modules(make().eval(), rule, x)
    expected, weight = model(x), next(m for m in model if hasattr(m, "matrix")).weight.clone()
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for _ in range(2):
                torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
            made = next(m for m in model if hasattr(m, "matrix")).weight
            assert made.device.type == "cpu"
            torch.testing.assert_close(made.clone(), weight, rtol=1e-4, atol=1e-5)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_what_needs_the_weights_says_how_to_bring_them_back(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)).eval()
    state = copy.deepcopy(model.state_dict())
    ksurgeon.convert(model, "linear", X)
    expected = model(X)
    accelerate.cpu_offload(model, execution_device="cpu")
    for refused, error in (
        (lambda: ksurgeon.revert(model), SurgeryError),
        (lambda: ksurgeon.save(model, tmp_path / "model"), SurgeryError),
        (lambda: ksurgeon.load_dense(model, state), SurgeryError),
        (lambda: ksurgeon.export_model(model, tmp_path / "model.pt2", X), ExportError),
    ):
        with pytest.raises(error, match="remove_hook_from_module"):
            refused()
    torch.testing.assert_close(model(X), expected)
    remove_hook_from_module(model, recurse=True)
    torch.testing.assert_close(ksurgeon.revert(model)(X), expected, rtol=1e-4, atol=1e-5)


def test_offloaded_layers_are_left_and_named():
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)).eval()
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(MatchError, match="offloaded by accelerate; convert the model first"):
        ksurgeon.convert(model, "linear", X)


def test_hooks_that_offload_nothing_go_with_their_layer():
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)).eval()
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    hook = model[0]._hf_hook
    done = ksurgeon.convert(model, "linear", X)
    assert len(done.results) == 2 and type(model[0]) is KLinear and model[0]._hf_hook is hook
    expected = model(X)
    ksurgeon.revert(model)
    assert type(model[0]) is nn.Linear and model[0]._hf_hook is hook
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)
    remove_hook_from_module(model, recurse=True)
    expected = ksurgeon.replace_modules(model, "linear", X)(X)
    torch.testing.assert_close(ksurgeon.revert(model)(X), expected, rtol=1e-4, atol=1e-5)
