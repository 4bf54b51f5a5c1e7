"""What others change in a converted model, and what is saved of it then."""

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import Rule
from ksurgeon.site_kinds import kind_of
from ksurgeon.surgery.current import current_record
from ksurgeon.surgery.record import record_of
from tests import zoo
from tests.near import near


def head(model):
    last = model.fc if hasattr(model, "fc") else model.head
    torch.manual_seed(5)
    setattr(model, "fc" if hasattr(model, "fc") else "head", nn.Linear(last.in_features, 7))


def no_head(model):
    model.fc = nn.Identity()


def unit(model):
    """A part of the model that nobody operated on, a shuffle of its own in it."""
    torch.manual_seed(5)
    model.units[1] = zoo.shufflenet_v1_g4().units[1].eval()


def attention(model):
    torch.manual_seed(5)
    model.own = nn.MultiheadAttention(32, 4, batch_first=True).eval()


DENSE = {"with": {"structure": "dense"}, "start": "exact"}
ALL = Rule(name="all", replace=[{"find": kind, **DENSE} for kind in ("linear", "pointwise_conv")])
CHANGES = [
    ("shufflenet_v1_g4", "shuffle", head, set()),
    ("shufflenet_v1_g4", "shuffle", no_head, set()),
    ("shufflenet_v1_g4", "shuffle", unit, {"units.1"}),
    ("attention", ALL, attention, {"own.in_proj_weight", "own.out_proj"}),
    ("convnet", ALL, head, {"fc"}),
    ("encoder", ALL, head, {"head"}),
    ("mlp", ALL, head, {"head"}),
]


def converted(name, rule):
    torch.manual_seed(0)
    model = getattr(zoo, name)().eval()
    return ksurgeon.replace_modules(model, rule, zoo.example(name), source=f"tests.zoo:{name}")


@pytest.mark.parametrize("name, rule, change, gone", CHANGES)
@torch.no_grad()
def test_a_changed_model_is_saved_as_it_is(tmp_path, name, rule, change, gone):
    model, x = converted(name, rule), zoo.example(name)
    paths = {operation.path for operation in record_of(model).operations}
    change(model)
    left = {path for path in paths if path.partition(":")[0] not in gone}
    assert len(paths) - len(left) == len(gone)
    record = current_record(model)
    assert {operation.path for operation in record.operations} == left
    same_architecture = change in (unit, attention)
    assert (record.source is not None) is same_architecture
    assert {operation.path for operation in record_of(model).operations} == paths
    fresh = getattr(zoo, name)().eval()
    change(fresh)
    assert record.architecture == {n: tuple(t.shape) for n, t in fresh.state_dict().items()}
    folder = ksurgeon.save(model, tmp_path / "model")
    loaded = ksurgeon.load(folder, None if same_architecture else fresh, trust_remote_code=True)
    assert near(loaded(x), model(x))
    ksurgeon.revert(loaded)
    assert not any(kind_of(module) for module in loaded.modules())
    torch.testing.assert_close(loaded(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name, rule", [("shufflenet_v1_g4", "shuffle"), ("attention", ALL), ("convnet", ALL)]
)
def test_a_model_that_nobody_changed_keeps_its_record(name, rule):
    model = converted(name, rule)
    assert current_record(model) == record_of(model)
    model.bfloat16().train()
    assert current_record(model) == record_of(model)
