"""Shuffles become K-matrices exactly, and go back."""

import subprocess
import sys

import pytest
import torch
import torchvision

import ksurgeon
from ksurgeon import KChannelShuffle
from tests import zoo
from tests.find.spellings import SPELLINGS
from tests.near import near

WIDTHS = ["x0_5", "x1_0", "x1_5", "x2_0"]


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(
    ("width", "dtype"), [(width, torch.float64) for width in WIDTHS] + [("x0_5", torch.float32)]
)
def test_shufflenet_v2(width, dtype):
    torch.manual_seed(0)
    model = torchvision.models.get_model(f"shufflenet_v2_{width}").to(dtype)
    x = torch.randn(2, 3, 64, 64, dtype=dtype)
    limit = 1e-5 if dtype == torch.float32 else 1e-12
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluated, trained = model.eval()(x), model.train()(x)
    model.load_state_dict(state)
    conversion = ksurgeon.convert(model, "shuffle", x)
    assert [result.weight_error for result in conversion.results] == [0.0] * 16
    assert conversion.record.source.name == f"shufflenet_v2_{width}"
    assert relative(model.eval()(x), evaluated) <= limit
    assert relative(model.train()(x), trained) <= limit
    model(x).square().sum().backward()
    shuffles = [module for module in model.modules() if isinstance(module, KChannelShuffle)]
    assert len(shuffles) == 16
    assert all(factor.grad is not None and factor.grad.any() for s in shuffles for factor in s.matrix.factors)
    model.load_state_dict(state, strict=False)
    ksurgeon.revert(model)
    assert str(model) == str(torchvision.models.get_model(f"shufflenet_v2_{width}"))
    assert list(model.state_dict()) == list(state)
    assert near(model.eval()(x), evaluated)


def test_load_in_a_new_process_gives_the_same_outputs(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.shufflenet_v2_x0_5().eval()
    x = torch.randn(2, 3, 64, 64)
    ksurgeon.replace_modules(model, "shuffle", x)
    ksurgeon.save(model, tmp_path / "model")
    torch.save((x, model(x)), tmp_path / "expected.pt")
    script = (
        "import sys, torch, ksurgeon\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "x, expected = torch.load(sys.argv[2])\n"
        "model = ksurgeon.load(sys.argv[1], trust_remote_code=True)\n"
        "torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "model", tmp_path / "expected.pt"], check=True)


@pytest.mark.parametrize("groups", [3, 4, 8])
def test_shufflenet_v1(groups):
    name = f"shufflenet_v1_g{groups}"
    model, x = getattr(zoo, name)().eval(), zoo.example(name)
    expected = model(x)
    conversion = ksurgeon.convert(model, "shuffle", x)
    assert len(conversion.results) == 4
    assert relative(model(x), expected) <= 1e-5
    assert type(ksurgeon.revert(model).units[0]) is type(getattr(zoo, name)().units[0])
    assert near(model(x), expected)


@pytest.mark.parametrize("network", SPELLINGS, ids=lambda c: c.__name__)
def test_every_spelling_is_replaced_exactly_and_reverted(network, tmp_path):
    torch.manual_seed(0)
    model = network()
    x = model.example()
    names = list(model.state_dict())
    outputs = {}
    for mode in (True, False):
        torch.manual_seed(1)
        outputs[mode] = model.train(mode)(x)
    ksurgeon.replace_modules(model, "shuffle", x)
    assert isinstance(model, network)
    for mode in (True, False):
        torch.manual_seed(1)
        torch.testing.assert_close(model.train(mode)(x), outputs[mode])
    ksurgeon.save(model, tmp_path / "model")
    loaded = ksurgeon.load(tmp_path / "model", model=network())
    assert near(loaded(x), model(x))
    ksurgeon.revert(loaded)
    assert type(loaded) is network and list(loaded.state_dict()) == names
    torch.testing.assert_close(loaded(x), outputs[False])


@pytest.mark.parametrize("network", SPELLINGS, ids=lambda c: c.__name__)
def test_a_trained_shuffle_reverts_to_a_dense_layer(network, tmp_path):
    torch.manual_seed(0)
    model = network().eval()
    x = model.example()
    ksurgeon.replace_modules(model, "shuffle", x)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, KChannelShuffle):
                for factor in module.matrix.factors:
                    factor.add_(0.1 * torch.randn_like(factor))
    expected = model(x)
    ksurgeon.revert(model)
    assert not any(isinstance(module, (KChannelShuffle, ksurgeon.KMatrix)) for module in model.modules())
    torch.testing.assert_close(model(x), expected)
    ksurgeon.save(model, tmp_path / "dense")
    assert near(ksurgeon.load(tmp_path / "dense", model=network())(x), model(x))


def test_autocast_keeps_a_shuffle_exact():
    shuffle = KChannelShuffle(12, 3)
    x = torch.randn(2, 12, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(shuffle(x), torch.channel_shuffle(x, 3))
        assert torch.equal(shuffle(x.bfloat16()), torch.channel_shuffle(x.bfloat16(), 3))
