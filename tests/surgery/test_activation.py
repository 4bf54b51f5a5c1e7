"""Whatever is done to a converted model's layers and activations, each applies what is its own."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn

import ksurgeon
from ksurgeon.kmatrix.structures import Kaleidoscope
from ksurgeon.rules.schema import Replacement, Rule

X = torch.randn(4, 64)
RULE = Rule(
    name="both",
    replace=tuple(
        Replacement(find=kind, structure=Kaleidoscope(), start="orthogonal")
        for kind in ("linear", "pointwise_conv")
    ),
)


class Block(nn.Module):
    """A layer that can be called on its own, and an activation that can be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)
        self.use = True

    def encode(self, x: Tensor) -> Tensor:
        return self.first(x)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x)
        return self.second(self.act(h) if self.use else h)


def mlp() -> nn.Sequential:
    """What the tests save and load."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)).eval()


def converted(model: nn.Module, x: Tensor = X) -> nn.Module:
    return ksurgeon.convert(model.eval(), RULE, x).model


def dense(layer: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.linear(x, layer.weight, layer.bias)


@pytest.mark.parametrize("make", [nn.ReLU, nn.ReLU6, nn.GELU, lambda: nn.GELU("tanh"), nn.SiLU, nn.Hardswish])
def test_layers_apply_no_activation(make) -> None:
    model, x = converted(nn.Sequential(nn.Linear(64, 64), make())), X[:1]
    conv = converted(nn.Sequential(nn.Conv2d(64, 64, 1), make()), image := torch.randn(2, 64, 4, 4))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            expected = dense(model[0], x)
            torch.testing.assert_close(model[0](x), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(model(x), make()(expected), rtol=1e-4, atol=1e-5)
            plain = nn.functional.conv2d(image, conv[0].weight, conv[0].bias)
            torch.testing.assert_close(conv[0](image), plain, rtol=1e-4, atol=1e-5)


def test_edits_after_the_conversion() -> None:
    model = converted(Block())
    hidden = dense(model.first, X)
    torch.testing.assert_close(model.encode(X), hidden, rtol=1e-4, atol=1e-5)
    assert type(model.act) is nn.ReLU

    def after(edit) -> Tensor:
        edited = copy.deepcopy(model)
        edit(edited)
        return edited(X)

    def expect(edit, h: Tensor) -> None:
        torch.testing.assert_close(after(edit), dense(model.second, h), rtol=1e-4, atol=1e-5)

    new = nn.Linear(64, 64)
    expect(lambda m: setattr(m, "first", new), new(X).relu())
    expect(lambda m: setattr(m, "act", nn.Tanh()), hidden.tanh())
    expect(lambda m: setattr(m, "act", nn.Identity()), hidden)
    expect(lambda m: setattr(m, "use", False), hidden)
    expect(lambda m: m.first.register_forward_hook(lambda *a: a[2] - 1), (hidden - 1).relu())
    expect(lambda m: m.act.register_forward_pre_hook(lambda _, a: (a[0] - 1,)), (hidden - 1).relu())
    expect(ksurgeon.revert, hidden.relu())


def test_an_adapter_around_the_layer() -> None:
    peft = pytest.importorskip("peft")
    model = converted(Block())
    with torch.no_grad():
        hidden = dense(model.first, X)
        config = peft.LoraConfig(target_modules=["first"], init_lora_weights=False, r=4)
        lora = peft.get_peft_model(model, config).eval()
        update = X @ model.first.get_delta_weight("default").T
        expected = dense(model.second, (hidden + update).relu())
        torch.testing.assert_close(lora(X), expected, rtol=1e-4, atol=1e-4)
        ksurgeon.revert(lora.get_base_model())
        torch.testing.assert_close(lora(X), expected, rtol=1e-4, atol=1e-4)


def test_records_of_fused_activations_still_load(tmp_path) -> None:
    model = ksurgeon.convert(mlp(), RULE, X, source=f"{__name__}:mlp").model
    folder = ksurgeon.save(model, tmp_path / "model")
    file = folder / "ksurgeon.json"
    record = json.loads(file.read_text())
    assert "activation" not in record["operations"][0]
    record["operations"][0] |= {"activation": "gelu", "activation_path": "1"}
    record["operations"][1] |= {"activation": None, "activation_path": ""}
    file.write_text(json.dumps(record))
    loaded = ksurgeon.load(folder, mlp())
    assert type(loaded[1]) is nn.GELU
    torch.testing.assert_close(loaded(X), model(X))
    again = json.loads((ksurgeon.save(loaded, tmp_path / "again") / "ksurgeon.json").read_text())
    assert "activation" not in again["operations"][0]


def test_the_option_says_that_it_does_nothing() -> None:
    with pytest.warns(FutureWarning, match="fuse_activations has no effect"):
        model = ksurgeon.convert(mlp(), RULE, X, fuse_activations=True).model
    assert type(model[1]) is nn.GELU
