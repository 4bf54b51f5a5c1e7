"""Maps are inserted where there was none, exactly at once, and taken out again."""

import copy
import io

import pytest
import timm
import torch
import torchvision
from torch import nn

import ksurgeon
from ksurgeon import KChannelShuffle, KPointwiseConv, Rule
from ksurgeon.errors import MatchError, SurgeryError
from ksurgeon.kmatrix.structures import Dense, Kaleidoscope, LowRank
from ksurgeon.rules import Insertion, Replacement
from ksurgeon.surgery.record import record_of
from ksurgeon.train.parameters import parameter_groups
from ksurgeon.train.settings import make_settings
from tests import zoo
from tests.near import near
from tests.train.conftest import vectors


def insertion(place, *targets, dim=1, start="identity", structure=None):
    return Insertion(dim=dim, start=start, structure=structure or Kaleidoscope(), **{place: targets})


def insert(*parts, replace=()):
    return Rule(name="inserted", insert=parts, replace=replace)


def convnet(*parts, replace=(), dtype=torch.float32):
    """The convolutional network, converted, in eval mode; an example and what it gave before."""
    model, x = zoo.convnet().eval().to(dtype), zoo.example("convnet", dtype)
    with torch.no_grad():
        expected = model(x)
    ksurgeon.convert(model, insert(*parts, replace=replace), x, source="tests.zoo:convnet")
    return model, x, expected


@torch.no_grad()
def disturb(model):
    for module in model.modules():
        if isinstance(module, KChannelShuffle):
            for factor in module.matrix.factors:
                factor.add_(0.1 * torch.randn_like(factor))


MODELS = {
    "torchvision": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=5),
    "vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=48, num_heads=2, depth=2, num_classes=5
    ),
}
PARTS = {
    "torchvision": (
        insertion("before", r"re:.*branch2\.0"),
        insertion("after", "conv1.0", dim=2),
        insertion("before", "conv1.0", dim=-1),
    ),
    "vit": (insertion("before", r"re:blocks\.\d+\.mlp", dim=-1), insertion("after", "patch_embed", dim=1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_identity_changes_nothing_is_loaded_and_goes(name, tmp_path):
    torch.manual_seed(0)
    model, x = MODELS[name]().eval(), torch.randn(2, 3, 32, 32)
    names, text, cls = list(model.state_dict()), str(model), type(model)
    with torch.no_grad():
        expected = model(x)
    conversion = ksurgeon.convert(model, insert(*PARTS[name]), x)
    assert conversion.output_change == 0 and len(conversion.results) >= 3
    assert all(result.start == "exact" and result.parameters_before == 0 for result in conversion.results)
    assert all(isinstance(model.get_submodule(r.path), KChannelShuffle) for r in conversion.results)
    with torch.no_grad():
        assert torch.equal(model(x), expected) and type(model) is cls
    disturb(model)
    trained = model(x)
    assert not torch.equal(trained, expected)
    ksurgeon.save(model, tmp_path / "model")
    assert near(ksurgeon.load(tmp_path / "model", MODELS[name]())(x), trained)
    with conversion.undone() as original:
        assert list(original.state_dict()) == names and torch.equal(original(x), expected)
    with torch.no_grad():
        for result in conversion.results:
            model.get_submodule(result.path).matrix.reset_parameters("identity")
    ksurgeon.revert(model)
    assert (str(model), list(model.state_dict())) == (text, names)
    assert torch.equal(model(x), expected) and not record_of(model).operations


@pytest.mark.parametrize("structure", [Kaleidoscope(width=2), Dense()])
def test_what_is_computed_is_the_product_with_the_dense_matrices(structure):
    parts = [insertion(p, "wide", start="orthogonal", structure=structure) for p in ("before", "after")]
    model, x, expected = convnet(*parts, insertion("before", "wide", dim=3), dtype=torch.float64)
    disturb(model)
    assert [name for name, _ in model.wide.named_children()] == ["kbefore0", "kbefore1", "kafter0"]
    before, last, after = (child.weight for child in model.wide.children())
    y = torch.einsum("oi,bihw->bohw", before, model.stem(x).relu()) @ last.T
    y = nn.functional.conv2d(y, model.wide.weight, model.wide.bias)
    y = torch.einsum("oi,bihw->bohw", after, y).relu()
    wanted = model.fc(model.grouped(model.strided(y)).relu().mean((2, 3)))
    torch.testing.assert_close(model(x), wanted)
    assert (model(x) - expected).abs().max() > 1e-4


def test_trained_maps_become_dense_layers_that_are_loaded(tmp_path):
    parts = insertion("before", "wide"), insertion("after", "wide"), insertion("after", "fc")
    model, x, _ = convnet(*parts, replace=(Replacement(find="pointwise_conv", structure=Kaleidoscope()),))
    disturb(model)
    with torch.no_grad():
        model.fc.kafter0.matrix.reset_parameters("identity")
    expected = model(x)
    ksurgeon.revert(model)
    assert type(model.wide) is type(model.wide.kbefore0) is nn.Conv2d and not list(model.fc.children())
    assert not any(isinstance(m, ksurgeon.KMatrix) for m in model.modules())
    torch.testing.assert_close(model(x), expected)
    ksurgeon.save(model, tmp_path / "dense")
    assert near(ksurgeon.load(tmp_path / "dense", trust_remote_code=True)(x), model(x))


def test_a_trained_map_that_no_layer_can_stand_for_leaves_the_model_as_it_was():
    model, x, _ = convnet(
        insertion("before", "wide"), insertion("before", "wide", dim=2), insertion("after", "fc")
    )
    disturb(model)
    names, expected = list(model.state_dict()), model(x)
    with pytest.raises(SurgeryError, match="no dense layer maps dimension 2"):
        ksurgeon.revert(model)
    assert list(model.state_dict()) == names and torch.equal(model(x), expected)


def test_the_layer_itself_may_be_replaced_at_the_same_time_or_later(tmp_path):
    dense = (Replacement(find="pointwise_conv", targets=("wide",), structure=Dense(), start="exact"),)
    parts = insertion("before", "wide", start="orthogonal"), insertion("after", "wide", start="random")
    model, x, _ = convnet(*parts, replace=dense)
    assert isinstance(model.wide, KPointwiseConv)
    later, _, _ = convnet(*parts)
    conv, expected = later.wide, later(x)
    ksurgeon.convert(later, insert(insertion("before", "strided"), replace=dense), x)
    assert isinstance(later.wide, KPointwiseConv) and later.wide.kbefore0 is conv.kbefore0
    torch.testing.assert_close(later(x), expected)
    for number, changed in enumerate((model, later)):
        ksurgeon.save(changed, tmp_path / str(number))
        again = ksurgeon.load(tmp_path / str(number), trust_remote_code=True)
        assert near(again(x), changed(x))
        torch.testing.assert_close(ksurgeon.revert(again)(x), changed(x))
    with pytest.raises(MatchError, match="inserted there before"):
        ksurgeon.convert(later, insert(insertion("after", "wide")), x)


def test_inside_and_outside_of_a_forward_that_is_rewritten():
    model, x = zoo.shufflenet_v1_g4().eval(), zoo.example("shufflenet_v1_g4")
    expected, text = model(x), str(model)
    shuffles = (Replacement(find="channel_shuffle", structure=Kaleidoscope()),)
    parts = insertion("before", "_UnitV1"), insertion("after", r"re:.*compress")
    done = ksurgeon.convert(model, insert(*parts, replace=shuffles), x)
    assert len(done.results) == 12 and near(model(x), expected)
    assert str(ksurgeon.revert(model)) == text and near(model(x), expected)


class Iterating(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x


def test_a_module_that_calls_all_its_children_is_refused():
    model, x = nn.Sequential(Iterating()), torch.randn(3, 8)
    text, expected = str(model), model(x)
    with pytest.raises(SurgeryError, match="calls all its children"):
        ksurgeon.convert(model, insert(insertion("before", "Iterating")), x)
    assert str(model) == text and torch.equal(model(x), expected)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(8, 8)
        self.two = self.one

    def forward(self, x):
        return self.two(self.one(x).relu())


def test_every_call_of_a_shared_module_is_mapped(tmp_path):
    torch.manual_seed(0)
    model, x = Shared(), torch.randn(3, 8)
    (result,) = ksurgeon.convert(model, insert(insertion("before", "two", start="random")), x).results
    one, weight = model.one, model.one.kbefore0.weight
    wanted = nn.functional.linear(x @ weight.T, one.weight, one.bias).relu()
    wanted = nn.functional.linear(wanted @ weight.T, one.weight, one.bias)
    torch.testing.assert_close(model(x), wanted)
    assert model.one is model.two and result.site.aliases == ("two",)
    ksurgeon.save(model, tmp_path / "model")
    assert near(ksurgeon.load(tmp_path / "model", Shared())(x), model(x))


def test_the_fast_path_of_torch_does_not_pass_the_map_by():
    model, x = zoo.encoder().eval(), zoo.example("encoder")
    ksurgeon.convert(model, insert(insertion("before", r"re:.*linear1", dim=2, start="random")), x)
    with torch.no_grad():
        fast = model(x)
    torch.testing.assert_close(fast, model(x))


@pytest.mark.parametrize(
    ("part", "match"),
    [
        (insertion("before", "conv9"), "matches nothing"),
        (insertion("before", "wide", dim=7), "of 4 dimensions have no dimension 7"),
        (insertion("before", "Convnet"), "whole model"),
        (insertion("before", "wide", structure=LowRank(rank=2)), "cannot be the identity"),
        (insertion("before", "wide", structure=Kaleidoscope(radix=[3])), "radices"),
    ],
)
def test_refusals_say_why_and_leave_the_model_alone(part, match):
    model = zoo.convnet()
    text = str(model)
    with pytest.raises(MatchError, match=match):
        ksurgeon.convert(model, insert(part), zoo.example("convnet"))
    assert str(model) == text


def test_calls_that_cannot_be_mapped_are_refused_when_they_come():
    model, x, _ = convnet(insertion("before", "wide"))
    with pytest.raises(SurgeryError, match="by position"):
        model.wide(input=model.stem(x))


def test_copies_pickles_and_programs():
    model, x, _ = convnet(*(insertion(p, "wide", start="orthogonal") for p in ("before", "after")))
    expected = model(x)
    copied = copy.deepcopy(model)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    disturb(model)
    torch.compiler.reset()
    for other in (
        copied,
        torch.load(stream, weights_only=False),
        torch.compile(copied, backend="eager", fullgraph=True),
        torch.export.export(copied, (x,)).module(),
    ):
        torch.testing.assert_close(other(x), expected)


def test_inserted_maps_are_trained_without_weight_decay():
    model, x, _ = convnet(insertion("before", "wide"))
    model(x).square().sum().backward()
    (group,) = (
        g
        for g in parameter_groups(model, make_settings())
        if any(p is model.wide.kbefore0.matrix.factors[0] for p in g["params"])
    )
    assert group["weight_decay"] == 0
    assert all(factor.grad.any() for factor in model.wide.kbefore0.matrix.factors)


@pytest.mark.parametrize("gradual", [False, True])
def test_a_model_with_inserted_maps_is_distilled(gradual, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    teacher, x = zoo.mlp().eval(), zoo.example("mlp")
    model = copy.deepcopy(teacher)
    linear = (Replacement(find="linear", targets=("up", "down"), structure=Kaleidoscope()),)
    rule = insert(insertion("before", "up"), insertion("after", "down", start="orthogonal"), replace=linear)
    ksurgeon.convert(model, rule, x, source="tests.zoo:mlp")
    before, options = (
        copy.deepcopy(model),
        {"steps": 6, "batch": 16, "device": "cpu", "evaluate": 2, "lr": 2e-3},
    )
    if gradual:
        model = ksurgeon.distill_gradually(model, teacher, vectors(), groups=2, **options).model
    else:
        ksurgeon.distill(model, teacher, vectors(), **options)
    assert (model(x) - teacher(x)).norm() < (before(x) - teacher(x)).norm()
    assert not torch.equal(model.up.kbefore0.weight, torch.eye(64))
    ksurgeon.save(model, tmp_path / "model")
    assert near(ksurgeon.load(tmp_path / "model", trust_remote_code=True)(x), model(x))
