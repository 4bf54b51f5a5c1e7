"""Converted models of torchvision: feature extractors, new heads, dense checkpoints."""

import copy

import pytest
import torch
import torchvision
from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor

import ksurgeon
from ksurgeon import RecordError
from ksurgeon.site_kinds import kind_of
from ksurgeon.surgery.record import record_of
from tests.integrations.test_timm import EXACT
from tests.integrations.tiny import RULE
from tests.near import near

X = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
NODES = {
    "shufflenet_v2_x0_5": ["stage2.0.branch2.0", "stage2", "conv5"],
    "mobilenet_v3_small": ["features.5.block.0", "features.8", "avgpool"],
}
CASES = [(name, RULE) for name in NODES] + [("shufflenet_v2_x0_5", "shuffle")]
HEADS = {
    "resnet18": ("fc", lambda: nn.Linear(512, 7)),
    "mobilenet_v3_small": ("classifier.3", lambda: nn.Linear(1024, 7)),
}


def create(name, seed=0, **options):
    torch.manual_seed(seed)
    return torchvision.models.get_model(name, weights=None, **options).eval()


def replaced(model):
    return {path for path, module in model.named_modules() if kind_of(module) is not None}


def set_head(model, name):
    path, make = HEADS[name]
    parent, _, own = path.rpartition(".")
    torch.manual_seed(3)
    setattr(model.get_submodule(parent), own, make())


@pytest.mark.parametrize("name, rule", CASES, ids=lambda v: getattr(v, "name", v))
@torch.no_grad()
def test_a_feature_extractor(tmp_path, name, rule):
    model = ksurgeon.replace_modules(create(name), rule, X)
    loaded = ksurgeon.load(ksurgeon.save(model, tmp_path / "model"))
    nodes, seen = NODES[name], {}
    hooks = [
        model.get_submodule(node).register_forward_hook(lambda m, i, o, node=node: seen.update({node: o}))
        for node in nodes
    ]
    model(X)
    for hook in hooks:
        hook.remove()
    extractor = create_feature_extractor(loaded, nodes)
    assert replaced(extractor) and replaced(extractor) <= replaced(model)
    for given in (
        extractor(X),
        create_feature_extractor(model, nodes)(X),
        copy.deepcopy(extractor).eval()(X),
    ):
        assert list(given) == nodes
        assert all(near(given[node], seen[node]) for node in nodes)
    dense = create_feature_extractor(create(name), nodes)(X)
    assert all(dense[node].shape == seen[node].shape for node in nodes)


def test_a_symbolic_trace_trains():
    model = ksurgeon.replace_modules(create("squeezenet1_1"), RULE, X)
    traced = fx.symbolic_trace(model)
    assert replaced(traced) == replaced(model)
    traced(X).square().mean().backward()
    factors = [p for m in model.modules() if kind_of(m) is not None for p in m.parameters()]
    assert factors and all(p.grad is not None for p in factors)


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_a_new_head(tmp_path, name):
    model = ksurgeon.replace_modules(create(name), RULE, X)
    before = replaced(model)
    set_head(model, name)
    assert HEADS[name][0] in before - replaced(model)
    loaded = ksurgeon.load(ksurgeon.save(model, tmp_path / "model"))
    assert near(loaded(X), model(X)) and loaded(X).shape == (1, 7)
    record = record_of(loaded)
    assert {o.path for o in record.operations} == replaced(loaded) == replaced(model)
    assert record.outcome.parameters[1] == sum(p.numel() for p in model.parameters())
    dense = create(name, num_classes=7)
    assert record.outcome.parameters[0] == sum(p.numel() for p in dense.parameters())
    assert record.outcome.output_change is None


@torch.no_grad()
def test_an_activation_does_not_go_with_its_layer(tmp_path):
    model = ksurgeon.replace_modules(create("squeezenet1_1"), RULE, X)
    model.classifier[1] = nn.Conv2d(512, 7, 1)  # the ReLU behind it stays
    loaded = ksurgeon.load(ksurgeon.save(model, tmp_path / "model"))
    assert near(loaded(X), model(X))
    dense = create("squeezenet1_1", num_classes=7)
    assert str(ksurgeon.revert(loaded)) == str(dense)


def test_a_head_that_no_builder_makes_is_asked_for(tmp_path):
    model = ksurgeon.replace_modules(create("resnet18"), RULE, X)
    model.fc = nn.Sequential(nn.Linear(512, 8), nn.Linear(8, 7))
    ksurgeon.save(model, tmp_path / "model")
    with pytest.raises(RecordError, match=r"does not say where the architecture comes from.*model="):
        ksurgeon.load(tmp_path / "model")
    fresh = create("resnet18")
    fresh.fc = nn.Sequential(nn.Linear(512, 8), nn.Linear(8, 7))
    assert near(ksurgeon.load(tmp_path / "model", fresh)(X), model(X))


@torch.no_grad()
def test_a_dense_checkpoint():
    name = "squeezenet1_1"
    model, other = ksurgeon.replace_modules(create(name), EXACT, X), create(name, seed=1)
    ksurgeon.load_dense(model, other.state_dict())
    torch.testing.assert_close(model(X), other(X), atol=1e-4, rtol=1e-4)
