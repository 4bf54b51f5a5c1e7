"""Converted models in timm: what its own methods and its users do with them."""

import json

import pytest
import timm
import torch

import ksurgeon
from ksurgeon import RecordError, Rule, WeightsError
from ksurgeon.site_kinds import kind_of
from ksurgeon.surgery.record import record_of
from tests.integrations.tiny import QUICK, RULE
from tests.near import near

X = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
MODELS = {
    "test_resnet": {},
    "test_vit": {"img_size": 64},
    "test_convnext": {},
    "test_efficientnet": {},
    "test_byobnet": {},
}
PARTS = ("linear", "pointwise_conv")
HEADS = ["re:.*(fc|head|classifier)"]
BODY = Rule(name="body", replace=[{"find": kind, "ignore": HEADS, **QUICK} for kind in PARTS])
DENSE = {"with": {"structure": "dense"}, "start": "exact"}
EXACT = Rule(name="exact", replace=[{"find": kind, **DENSE} for kind in PARTS])


def create(name, seed=0, **options):
    torch.manual_seed(seed)
    return timm.create_model(name, **MODELS[name], **options).eval()


def converted(name, rule=RULE, **options):
    return ksurgeon.replace_modules(create(name, **options), rule, X)


def reloaded(model, folder):
    return ksurgeon.load(ksurgeon.save(model, folder))


def replaced(model):
    return {path for path, module in model.named_modules() if kind_of(module) is not None}


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_is_one_of_timm(tmp_path, name):
    model = converted(name)
    loaded = reloaded(model, tmp_path / "model")
    source = json.loads((tmp_path / "model" / "ksurgeon.json").read_text())["source"]
    assert source["kind"] == "timm" and source["name"].partition(".")[0] == name
    assert type(loaded) is type(model) and replaced(loaded) == replaced(model) != set()
    assert loaded.pretrained_cfg == create(name).pretrained_cfg
    assert timm.data.resolve_model_data_config(loaded) == timm.data.resolve_model_data_config(create(name))
    with torch.no_grad():
        assert near(loaded(X), model(X))
        features = loaded.forward_features(X)
        assert near(features, model.forward_features(X))
        assert near(loaded.forward_head(features), model(X))
        final, taps = loaded.forward_intermediates(X)
        assert near(final, features) and len(taps) > 1


@pytest.mark.parametrize("name, rule, classes", [
    ("test_resnet", RULE, 7),
    ("test_resnet", BODY, 0),
    ("test_vit", RULE, 0),
    ("test_vit", BODY, 7),
    ("test_convnext", RULE, 7),
], ids=lambda v: getattr(v, "name", v))  # fmt: skip
@torch.no_grad()
def test_a_new_classifier(tmp_path, name, rule, classes):
    model = converted(name, rule)
    loaded = reloaded(model, tmp_path / "model")
    loaded.reset_classifier(classes)
    assert loaded.num_classes == classes
    body = near(loaded.forward_features(X), model.forward_features(X))
    assert body and loaded(X).shape == (1, classes or loaded.num_features)
    again = reloaded(loaded, tmp_path / "again")
    assert near(again(X), loaded(X)) and again.num_classes == classes
    assert replaced(again) == replaced(loaded) == {o.path for o in record_of(again).operations}
    ksurgeon.revert(again)
    assert str(again) == str(create(name, num_classes=classes))
    torch.testing.assert_close(again(X), loaded(X), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("options", [
    {"features_only": True},
    {"features_only": True, "out_indices": (0, 2)},
    {"features_only": True, "feature_cls": "dict"},
    {"num_classes": 5, "in_chans": 1},
    {"global_pool": "avgmax"},
    {"drop_path_rate": 0.1},
    {"drop_rate": 0.2, "global_pool": "max"},
], ids=str)  # fmt: skip
@torch.no_grad()
def test_what_a_model_was_created_with_is_known_again(tmp_path, options):
    x = X[:, : options.get("in_chans", 3)]
    model = ksurgeon.replace_modules(create("test_resnet", **options), RULE, x)
    loaded = reloaded(model, tmp_path / "model")
    assert str(loaded) == str(model) and loaded.pretrained_cfg == model.pretrained_cfg
    outputs, expected = loaded(x), model(x)
    if options.get("features_only"):
        assert loaded.feature_info.channels() == model.feature_info.channels()
        assert len(outputs) == len(expected) == len(loaded.feature_info.channels())
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


def test_features_of_a_transformer(tmp_path):
    model = converted("test_vit", features_only=True)
    loaded = reloaded(model, tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(loaded(X), model(X), rtol=1e-4, atol=1e-4)


def test_an_architecture_that_cannot_be_told_is_asked_for(tmp_path):
    model = converted("test_resnet", output_stride=8)
    ksurgeon.save(model, tmp_path / "model")
    with pytest.raises(RecordError, match="model="):
        ksurgeon.load(tmp_path / "model")
    loaded = ksurgeon.load(tmp_path / "model", create("test_resnet", output_stride=8))
    assert near(loaded(X), model(X))


@pytest.mark.parametrize("name", ["test_vit", "test_byobnet"])
def test_a_dense_checkpoint_in_a_loaded_model(tmp_path, name):
    loaded = reloaded(converted(name, EXACT), tmp_path / "model")
    other = create(name, seed=1)
    errors = ksurgeon.load_dense(loaded, other.state_dict())
    assert errors.keys() == replaced(loaded)
    with torch.no_grad():
        torch.testing.assert_close(loaded(X), other(X), atol=1e-4, rtol=1e-4)


def test_a_dense_checkpoint_after_a_new_classifier():
    model, other = converted("test_resnet", EXACT), create("test_resnet", seed=1, num_classes=7)
    model.reset_classifier(7)
    with pytest.raises(WeightsError, match=r"fc\.weight is \(1000, 96\) instead of \(7, 96\)"):
        ksurgeon.load_dense(model, create("test_resnet").state_dict())
    errors = ksurgeon.load_dense(model, other.state_dict())
    assert "fc" not in errors
    with torch.no_grad():
        torch.testing.assert_close(model(X), other(X), atol=1e-4, rtol=1e-4)


def test_a_new_classifier_is_replaced_in_its_turn(tmp_path):
    model = converted("test_vit")
    model.reset_classifier(64)
    ksurgeon.convert(model, Rule(name="head", replace=[{"find": "linear", "targets": ["head"], **QUICK}]), X)
    loaded = reloaded(model, tmp_path / "model")
    assert near(loaded(X), model(X)) and "head" in replaced(loaded)
    assert len(record_of(loaded).operations) == len(replaced(loaded))
