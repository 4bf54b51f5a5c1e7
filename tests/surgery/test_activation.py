"""Activations go into the K-layers before them where that is proved to change nothing, and come back."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ksurgeon
from ksurgeon import RecordError, SurgeryError
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.structures import Kaleidoscope
from ksurgeon.rules.schema import Replacement, Rule
from ksurgeon.surgery.activation import FusedActivation

X = torch.randn(4, 64)
# Nothing is fitted: these tests compare K-modules with K-modules.
LINEAR = Rule(
    name="linear", replace=(Replacement(find="linear", structure=Kaleidoscope(), start="orthogonal"),)
)
POINTWISE = Rule(
    name="pointwise",
    replace=(Replacement(find="pointwise_conv", structure=Kaleidoscope(), start="orthogonal"),),
)
ACTIVATIONS = [nn.ReLU, nn.ReLU6, nn.GELU, lambda: nn.GELU("tanh"), nn.SiLU, nn.Hardswish]


def mlp(activation: nn.Module | None = None) -> nn.Sequential:
    """What the tests save and load."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), activation or nn.GELU(), nn.Linear(128, 64)).eval()


class Block(nn.Module):
    """Two layers and an activation; subclasses make something of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x)))


def fused(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, FusedActivation)]


def test_equal_to_the_same_layers_apart() -> None:
    for make in ACTIVATIONS:
        model = mlp(make())
        apart = ksurgeon.convert(copy.deepcopy(model), LINEAR, X, fuse_activations=False).model
        done = ksurgeon.convert(model, LINEAR, X)
        assert fused(model) == ["1"] and not fused(apart)
        assert done.record.operations[0].activation and not done.record.operations[1].activation
        assert list(model.state_dict()) == list(apart.state_dict())
        for x in (X, X[:1], torch.randn(2, 33, 64)):
            with torch.inference_mode():
                torch.testing.assert_close(model(x), apart(x), rtol=1e-4, atol=1e-5)
        results = []
        for one in (model.train(), apart.train()):
            x = X.clone().requires_grad_()
            one(x).square().sum().backward()
            results.append([x.grad, *(p.grad for p in one.parameters())])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_the_original_is_back_inside_undone_and_after_a_revert() -> None:
    model = mlp()
    activation, expected = model[1], model(X)
    conversion = ksurgeon.convert(model, LINEAR, X)
    with conversion.undone():
        assert model[1] is activation
        torch.testing.assert_close(model(X), expected)
    assert fused(model) == ["1"] and model[0].activation == "gelu"
    converted = model(X)
    ksurgeon.revert(model)
    assert model[1] is activation and type(model[0]) is nn.Linear
    torch.testing.assert_close(model(X), converted, rtol=1e-4, atol=1e-5)


def test_no_part_is_reverted_that_would_lose_an_activation() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.act = nn.ModuleDict({"layer": nn.Linear(64, 64)}), nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.inner["layer"](x))

    model = ksurgeon.convert(Outer().eval(), LINEAR, X).model
    assert fused(model) == ["act"]
    expected = model(X)
    with pytest.raises(SurgeryError, match="revert the whole model"):
        ksurgeon.revert(model.inner)
    torch.testing.assert_close(model(X), expected)
    ksurgeon.revert(model)
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)


def test_save_load_revert(tmp_path) -> None:
    model = ksurgeon.convert(mlp(), LINEAR, X, source=f"{__name__}:mlp").model
    folder = ksurgeon.save(model, tmp_path / "model")
    loaded = ksurgeon.load(folder)
    assert fused(loaded) == ["1"] and loaded[0].activation == "gelu"
    with torch.inference_mode():
        torch.testing.assert_close(loaded(X), model(X))
    ksurgeon.revert(loaded)
    assert type(loaded[1]) is nn.GELU
    torch.testing.assert_close(loaded(X), model(X), rtol=1e-4, atol=1e-5)
    with pytest.raises(RecordError, match="fuses gelu at '1'"):
        ksurgeon.load(folder, mlp(nn.ReLU()))
    file = folder / "ksurgeon.json"
    record = json.loads(file.read_text())
    record["operations"][0]["activation_path"] = "7"
    file.write_text(json.dumps(record))
    with pytest.raises(RecordError, match="'7'"):
        ksurgeon.load(folder)


def test_copies_are_their_own() -> None:
    model = ksurgeon.convert(mlp(), LINEAR, X).model
    twin = copy.deepcopy(model)
    ksurgeon.revert(model)
    assert fused(twin) == ["1"] and twin[0].activation == "gelu"
    assert twin[1].replaced[0] is not model[1]
    torch.testing.assert_close(twin(X), model(X), rtol=1e-4, atol=1e-5)


def test_a_vision_transformer_s_blocks_and_export_and_compile() -> None:
    import timm

    x = torch.randn(1, 3, 32, 32)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0).eval()
    done = ksurgeon.convert(model, LINEAR, x)
    assert fused(model) == ["blocks.0.mlp.act", "blocks.1.mlp.act"]
    assert sum(operation.activation == "gelu" for operation in done.record.operations) == 2
    with torch.no_grad():
        expected = model(x)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-4)
        compiled = torch.compile(model.blocks[0].mlp, backend="eager", fullgraph=True)
        tokens = torch.randn(1, 5, 192)
        torch.testing.assert_close(compiled(tokens), model.blocks[0].mlp(tokens), rtol=1e-4, atol=1e-4)


def test_pointwise_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU(inplace=True), nn.Conv2d(64, 64, 1)).eval()
    x = torch.randn(2, 64, 8, 8)
    apart = ksurgeon.convert(copy.deepcopy(model), POINTWISE, x, fuse_activations=False).model
    ksurgeon.convert(model, POINTWISE, x)
    assert isinstance(model[0], KPointwiseConv) and model[0].activation == "relu"
    for format in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=format)
        with torch.inference_mode():
            torch.testing.assert_close(model(given), apart(given), rtol=1e-4, atol=1e-5)


class SharedActivation(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.act(self.first(x))))


class TwoConsumers(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(self.act(y)) + y


class Functional(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


class CalledTwice(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.first(self.first(x)))


class OnCondition(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.act(y) if x.shape[0] > 2 else y


class OtherwiseInTraining(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.act(y) + y if self.training else self.act(y)


class Returned(Block):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        return self.act(y), y


class TwoPlaces(Block):
    def __init__(self) -> None:
        super().__init__()
        self.alias = self.act


class ReadElsewhere(Block):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Functional()
        self.inner.second = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.inner.second(self.first(x)))


def with_hook(name: str, kind: str) -> Block:
    block = Block()
    getattr(getattr(block, name), kind)(lambda *_: None)
    return block


REFUSED = [
    SharedActivation,
    TwoConsumers,
    Functional,
    CalledTwice,
    OnCondition,
    OtherwiseInTraining,
    Returned,
    TwoPlaces,
    ReadElsewhere,
    lambda: with_hook("first", "register_forward_hook"),
    lambda: with_hook("act", "register_forward_hook"),
    lambda: with_hook("act", "register_forward_pre_hook"),
    lambda: with_hook("first", "register_full_backward_hook"),
    lambda: nn.Sequential(nn.Linear(64, 64), nn.Tanh()),
    lambda: nn.Sequential(nn.Linear(64, 64), nn.Dropout(), nn.ReLU()),
    lambda: nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU()),
]


@pytest.mark.parametrize("make", REFUSED)
def test_left_alone_where_it_is_not_proved(make) -> None:
    model = make().eval()
    ksurgeon.convert(model, LINEAR, X)
    assert any(isinstance(module, KLinear) for module in model.modules())
    assert fused(model) == []
    assert all(module.activation is None for module in model.modules() if isinstance(module, KLinear))


def test_fused_in_a_plain_block_and_told() -> None:
    model = Block().eval()
    ksurgeon.convert(model, LINEAR, X)
    assert fused(model) == ["act"]
    assert "activation=relu" in repr(model.first) and "ReLU()" in repr(model.act)


def test_the_report_counts_them() -> None:
    from rich.console import Console

    from ksurgeon.report.terminal import show_record

    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    show_record(console, ksurgeon.convert(mlp(), LINEAR, X).record)
    assert "1 activation fused into" in console.export_text()
