"""Batch norms folded into layers: the same outputs, saved, loaded, trained and taken out again."""

import json
import tomllib

import pytest
import torch
import torchvision
import transformers
from torch import nn
from torch.nn.utils import prune

import ksurgeon
from ksurgeon.errors import InputError, MatchError
from ksurgeon.kmatrix.structures import Kaleidoscope, LowRank, Sum
from ksurgeon.surgery.folded import FoldedNorm
from ksurgeon.surgery.record import record_of


def stirred(model: nn.Module) -> nn.Module:
    """In eval mode, with norms that do something."""
    torch.manual_seed(1)
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            if module.weight is not None:
                module.weight.data.uniform_(-1.5, -0.5)
                module.bias.data.normal_(0, 0.3)
    return model.eval()


def close(one, other):
    torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)


LAYERS = {
    "conv": lambda: nn.Sequential(nn.Conv2d(6, 8, 3, groups=2, bias=False), nn.BatchNorm2d(8)),
    "biased": lambda: nn.Sequential(nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8, affine=False)),
    "k": lambda: nn.Sequential(ksurgeon.KPointwiseConv(6, 8, bias=False), nn.BatchNorm2d(8)),
    "k padded": lambda: nn.Sequential(ksurgeon.KPointwiseConv(6, 10, groups=2), nn.BatchNorm2d(10)),
    "k and rank": lambda: nn.Sequential(
        ksurgeon.KPointwiseConv(6, 7, structure=Sum(Kaleidoscope(), rank=2)), nn.BatchNorm2d(7)
    ),
    "rank": lambda: nn.Sequential(
        ksurgeon.KPointwiseConv(6, 7, structure=LowRank(rank=2)), nn.BatchNorm2d(7)
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_outputs_stay(name, dtype):
    model, x = stirred(LAYERS[name]()).to(dtype), torch.randn(2, 6, 5, 5, dtype=dtype)
    before, state = model(x), {n: t.clone() for n, t in model.state_dict().items()}
    assert ksurgeon.fold(model, x) == {"1": "0"}
    assert isinstance(model[1], FoldedNorm) and model(x) is not None
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(model(x), before, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(model[0](x), before, atol=tolerance, rtol=tolerance)  # the layer does it all
    ksurgeon.unfold(model)
    assert type(model[1]) is nn.BatchNorm2d and not record_of(model).folded
    again = model.state_dict()
    assert again.keys() == state.keys()
    for key, tensor in state.items():
        torch.testing.assert_close(again[key], tensor, atol=tolerance, rtol=tolerance)


def test_a_linear_layer(tmp_path):
    model = stirred(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))
    x = torch.randn(7, 5)
    before = model(x)
    assert ksurgeon.fold(model, x) == {"1": "0"}
    close(model(x), before)
    ksurgeon.save(model, tmp_path / "m")
    fresh = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    close(ksurgeon.load(tmp_path / "m", fresh)(x), before)


def test_what_was_trained_since_is_not_lost():
    model, x = stirred(LAYERS["k"]()), torch.randn(2, 6, 5, 5)
    ksurgeon.fold(model, x)
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    after = model(x)
    close(ksurgeon.unfold(model)(x), after)
    assert model[0].bias is None


@pytest.mark.parametrize("how", ["fold", "convert"])
def test_a_converted_network_is_saved_and_reverted(how, tmp_path):
    model, x = stirred(torchvision.models.shufflenet_v2_x0_5(num_classes=7)), torch.randn(2, 3, 32, 32)
    names, before = set(model.state_dict()), model(x)
    conversion = ksurgeon.convert(model, "shuffle", x, fold=how == "convert")
    if how == "fold":
        assert len(ksurgeon.fold(model, x)) > 40
    close(model(x), before)
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm2d, FoldedNorm))]
    assert norms and all(isinstance(norm, FoldedNorm) for norm in norms)
    assert f"{len(norms)} batch norms folded" in " ".join(record_of(model).outcome.parts)
    loaded = ksurgeon.load(ksurgeon.save(model, tmp_path / "m"))
    assert torch.equal(loaded(x), model(x))
    assert record_of(loaded).folded == record_of(model).folded
    ksurgeon.save(loaded, tmp_path / "again")
    if how == "convert":
        with conversion.undone():
            assert set(model.state_dict()) == names and torch.equal(model(x), before)
        close(model(x), before)
    ksurgeon.revert(loaded)
    assert set(loaded.state_dict()) == names and not any(isinstance(m, FoldedNorm) for m in loaded.modules())
    close(loaded(x), before)


def test_pointwise_convolutions_of_a_folded_network_are_converted(tmp_path):
    """A second stage that begins with biases that the fold brought."""
    model, x = stirred(torchvision.models.shufflenet_v2_x0_5(num_classes=7)), torch.randn(2, 3, 32, 32)
    before = model(x)
    ksurgeon.fold(model, x)
    rule = tmp_path / "rule.toml"
    rule.write_text(
        'schema = 1\nname = "all"\n[[replace]]\nfind = "pointwise_conv"\nstart = "fit"\n'
        'with = { structure = "low_rank", share = 0.9 }\n'
    )
    ksurgeon.convert(model, rule, x)
    y = model(x)
    loaded = ksurgeon.load(ksurgeon.save(model, tmp_path / "m"))
    assert torch.equal(loaded(x), y) and not torch.equal(y, before)
    close(ksurgeon.unfold(loaded)(x), y)
    assert any(isinstance(m, nn.BatchNorm2d) for m in loaded.modules())


def test_norms_with_an_activation_of_timm():
    timm = pytest.importorskip("timm")
    model = stirred(timm.create_model("tf_efficientnet_lite0", num_classes=4))
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    folded = ksurgeon.fold(model, x)
    assert folded["bn1"] == "conv_stem" and len(folded) > 40
    close(model(x), before)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


class Twice(nn.Module):
    """A layer whose output goes elsewhere, too; one that is called twice; a norm with no layer before it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.na, self.nb, self.nc = (nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x):
        y = self.a(x)
        x = self.na(y) + y
        x = self.nb(self.b(x)) + self.b(x)
        return self.nc(torch.relu(self.c(x)))


class Depends(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.n(self.a(x)) if x.sum() > -1e9 else self.a(x)


def _shared():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    model[2].weight = model[0].weight
    return model


def _hooked():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    return model


def _dead():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    nn.init.zeros_(model[1].weight)
    return model


class Standardised(nn.Conv2d):
    def forward(self, x):
        return nn.functional.conv2d(x, self.weight / self.weight.norm(), self.bias)


class Optional(nn.Module):
    """Another argument leads past the norm."""

    def __init__(self):
        super().__init__()
        self.a, self.n = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x, raw=False):
        return self.a(x) if raw else self.n(self.a(x))


class Reads(nn.Module):
    """Reads the layer's weight, too; and gives a module a tuple's part."""

    def __init__(self):
        super().__init__()
        self.a, self.n, self.s = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), Split()

    def forward(self, x):
        one, _ = self.s(self.n(self.a(x)))
        return one * self.a.weight.mean()


class Split(nn.Module):
    def forward(self, x):
        return x.chunk(2, 1)


def _same_memory():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    model[2].weight = nn.Parameter(model[0].weight.data)
    return model


@pytest.mark.parametrize(
    "make",
    [
        Twice,
        Optional,
        Reads,
        _same_memory,
        Depends,
        _shared,
        _hooked,
        _dead,
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        lambda: nn.Sequential(Standardised(4, 4, 1), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)),
    ],
)
def test_what_is_left_alone(make):
    model, x = make().eval(), torch.randn(2, 4, 3, 3)
    before, text = {n: t.clone() for n, t in model.state_dict().items()}, str(model)
    with pytest.raises(MatchError):
        ksurgeon.fold(model, x)
    assert str(model) == text and record_of(model) is None
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_in_training_mode_is_refused():
    model = LAYERS["conv"]()
    with pytest.raises(InputError, match="eval"):
        ksurgeon.fold(model, torch.randn(2, 6, 5, 5))
    assert ksurgeon.unfold(model) is model


def test_a_failure_leaves_everything_as_it_was(monkeypatch):
    model, x = stirred(LAYERS["k and rank"]()), torch.randn(2, 6, 5, 5)
    before, state = str(model), {n: t.clone() for n, t in model.state_dict().items()}
    monkeypatch.setattr("ksurgeon.surgery.fold.output_change", lambda *_: 1.0)
    with pytest.raises(ksurgeon.SurgeryError, match="restored"):
        ksurgeon.fold(model, x)
    assert str(model) == before and record_of(model) is None
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def network():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 6),
        nn.BatchNorm1d(6),
    )


DENSE = """
name = "dense"
[[replace]]
find = "linear"
with = { structure = "dense" }
start = "exact"
"""


@pytest.fixture
def rule(tmp_path):
    file = tmp_path / "dense.toml"
    file.write_text(DENSE)
    return file


X = torch.randn(3, 4, 8, 8)


def train(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)


def test_undone_and_done_again_keeps_what_was_trained(rule):
    """Bit for bit as long as nothing was."""
    model = stirred(network())
    before = model(X)
    conversion = ksurgeon.convert(model, rule, X, fold=True)
    bias = model[3].bias
    with conversion.undone():
        assert torch.equal(model(X), before)
    assert model[3].bias is bias
    train(model)
    after = model(X)
    with conversion.undone():
        assert isinstance(model[1], nn.BatchNorm2d)
    close(model(X), after)
    ksurgeon.unfold(model)
    with conversion.undone():
        assert isinstance(model[1], nn.BatchNorm2d)
    assert isinstance(model[1], nn.BatchNorm2d)  # not folded again
    close(model(X), after)


def hooked(model):
    model[0].register_forward_hook(lambda module, args, output: output * 2)


def quantized(model):
    ksurgeon.quantize(model)


def parametrized(model):
    nn.utils.parametrizations.weight_norm(model[0])


def pruned(model):
    prune.l1_unstructured(model[0], "weight", 0.5)


def wrapped(model):
    model[0] = nn.Sequential(model[0])


def zeroed(model):
    model[1].weight.data[0] = 0


@pytest.mark.parametrize("change", [hooked, quantized, parametrized, pruned, wrapped, zeroed])
def test_what_cannot_be_taken_out_any_more_is_refused(change):
    model = stirred(network())
    ksurgeon.fold(model, X)
    change(model)
    after, text = model(X), str(model)
    with pytest.raises(ksurgeon.SurgeryError, match=r"cannot be taken out|no longer there"):
        ksurgeon.unfold(model)
    assert str(model) == text and torch.equal(model(X), after)
    if change is quantized:  # which becomes dense first
        close(ksurgeon.revert(model)(X), after)
        return
    with pytest.raises(ksurgeon.SurgeryError):
        ksurgeon.revert(model)
    assert str(model) == text and torch.equal(model(X), after)


def test_a_norm_whose_layer_was_replaced(tmp_path):
    model = stirred(network())
    ksurgeon.fold(model, X)
    model[3] = nn.Conv2d(8, 8, 1, bias=False)
    for act in (ksurgeon.unfold, lambda model: ksurgeon.save(model, tmp_path / "m")):
        with pytest.raises(ksurgeon.SurgeryError, match="4 was folded into a layer that is no longer there"):
            act(model)


def test_states_of_folded_and_other_models_are_not_mistaken():
    model, other = stirred(network()), stirred(network())
    ksurgeon.fold(model, X)
    for one, two in ((model, other), (other, model)):
        with pytest.raises(RuntimeError, match="folded"):
            one.load_state_dict(two.state_dict())
    with pytest.raises(ValueError, match="4 dimensions, got 3"):
        model[1](X[0])
    with pytest.raises(ksurgeon.SurgeryError, match="unfold"):
        ksurgeon.load_dense(stirred_and_converted(), other.state_dict())


def stirred_and_converted():
    model = stirred(network())
    rule = ksurgeon.Rule.model_validate(tomllib.loads(DENSE))
    ksurgeon.convert(model, rule, X, fold=True)
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda folded: [],
        lambda folded: folded[:1],
        lambda folded: [folded[0], {**folded[1], "layer": "0"}, folded[2]],
        lambda folded: [folded[0], folded[1], {**folded[2], "layer": "3"}],
        lambda folded: [{**folded[0], "layer": "7"}, *folded[1:]],
        lambda folded: [{**folded[0], "layer": "1"}, *folded[1:]],
        lambda folded: [{**folded[0], "norm": "2"}, *folded[1:]],
        lambda folded: [{**folded[0], "norm": "9.9"}, *folded[1:]],
        lambda folded: [{**folded[0], "had_bias": False}, *folded[1:]],
        lambda folded: [*folded, folded[0]],
    ],
)
def test_damaged_records(tmp_path, change):
    model = stirred(network())
    ksurgeon.fold(model, X)
    file = ksurgeon.save(model, tmp_path / "m") / "ksurgeon.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "folded": change(record["folded"])}))
    fresh = network()
    text, state = str(fresh), {n: t.clone() for n, t in fresh.state_dict().items()}
    with pytest.raises(ksurgeon.RecordError):
        ksurgeon.load(tmp_path / "m", fresh)
    assert str(fresh) == text
    assert all(torch.equal(state[name], tensor) for name, tensor in fresh.state_dict().items())


def test_a_failure_in_the_middle():
    """The second layer's bias is one number for all channels, and cannot be written."""
    model = stirred(network())
    model[7].bias = nn.Parameter(torch.zeros(1).expand(6))
    before, text = model(X), str(model)
    with pytest.raises(RuntimeError):
        ksurgeon.fold(model, X)
    assert str(model) == text and torch.equal(model(X), before) and record_of(model) is None


class Decides(nn.Module):
    """As a detector, whose answer depends on which of two numbers is larger by rounding."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x):
        y = self.features(x)
        return (y * 1e9).sin() if y.dtype is torch.float32 else y


def test_outputs_that_rounding_changes_anyway():
    model = stirred(Decides())
    assert ksurgeon.fold(model, X) == {"features.1": "features.0"}


def test_models_of_transformers(tmp_path):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    model, x = stirred(transformers.ResNetForImageClassification(config)), torch.randn(2, 3, 32, 32)
    before = model(x).logits
    assert len(ksurgeon.fold(model, x)) > 3
    after = model(x).logits
    close(after, before)
    model.save_pretrained(tmp_path / "m")
    loaded = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "m").eval()
    close(loaded(x).logits, after)
    base = transformers.ResNetModel.from_pretrained(tmp_path / "m").eval()
    close(base(x).pooler_output, model.resnet(x).pooler_output)
    close(ksurgeon.load(tmp_path / "m")(x).logits, after)
    ksurgeon.unfold(loaded)
    assert getattr(loaded.config, "quantization_config", None) is None
    close(loaded(x).logits, after)
