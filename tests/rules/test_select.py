"""Structures and targets given to ``convert`` in Python."""

import warnings

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import Dense, Kaleidoscope, KLinear, LowRank, Monarch
from ksurgeon.errors import MatchError, RuleError
from ksurgeon.kmatrix.conv import KPointwiseConv
from tests import zoo


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        return self.query(x) * self.value(x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x):
        return x + self.mlp(self.attn(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(Block(), Block())
        self.head = nn.Linear(32, 8)

    def forward(self, x):
        return self.head(self.layers(x))


X = torch.randn(4, 32)
ATTN = [f"layers.{i}.attn.{name}" for i in range(2) for name in ("query", "value")]
MLP = [f"layers.{i}.mlp.{j}" for i in range(2) for j in (0, 2)]


def replaced(*args, **options):
    model = Model().eval()
    ksurgeon.convert(model, *args, **options)
    return sorted(name for name, module in model.named_modules() if isinstance(module, KLinear))


@pytest.mark.parametrize(
    ("targets", "paths"),
    [
        ("attn", ATTN),
        ("0.attn", ATTN[:2]),
        ("layers.1", [*ATTN[2:], *MLP[2:]]),
        ("layers.0.mlp.0", MLP[:1]),
        ("*.mlp.*", MLP),
        ("layers.?.mlp.[2]", MLP[1::2]),
        (r"re:.*\.mlp\..*", MLP),
        ("Attention", ATTN),
        (Attention, ATTN),
        (nn.Linear, [*ATTN, *MLP, "head"]),
        (["attn", "head"], [*ATTN, "head"]),
        (lambda path, module: module.out_features == 64, MLP[::2]),
        (None, [*ATTN, *MLP]),
    ],
)
def test_targets(targets, paths):
    assert replaced(LowRank(2), X, targets=targets) == sorted(paths)
    if targets is not None:
        assert replaced("low_rank", X, targets=targets) == sorted(set(paths) - {"head"})


def test_a_structure_for_each_target_the_first_that_matches():
    model = Model().eval()
    structures = {
        "attn": LowRank(share=0.5),
        ("mlp", "head"): Kaleidoscope() + LowRank(1),
        nn.Linear: Dense(),
    }
    done = ksurgeon.convert(model, structures, X, ignore="layers.1.mlp")
    assert {r.path for r in done.results} == {*ATTN, *MLP[:2], "head"}
    assert model.layers[0].attn.query.matrix.structure == LowRank(share=0.5)
    assert model.layers[0].mlp[0].matrix.structure == Kaleidoscope() + LowRank(1)
    left = {d.path: d.reason for d in done.plan.decisions if d.action == "leave"}
    assert left == dict.fromkeys(MLP[2:], 'ignored by "layers.1.mlp"')
    assert done.record.rules == ["low_rank, kaleidoscope+low_rank, dense"]


def test_a_structure_is_for_pointwise_convolutions_too():
    model, x = zoo.convnet().eval(), zoo.example("convnet")
    ksurgeon.convert(model, Monarch(2), x)
    assert isinstance(model.wide, KPointwiseConv) and type(model.fc) is nn.Linear


def test_rules_plans_and_starts():
    plan = ksurgeon.convert(Model().eval(), "low_rank", X).plan
    assert replaced(plan, X, targets="attn", ignore="query") == ATTN[1::2]
    assert replaced(plan=plan) == replaced(rule="low_rank") == replaced("low_rank") == sorted([*ATTN, *MLP])
    done = ksurgeon.convert(Model().eval(), Kaleidoscope(), X, targets="attn", start="identity")
    assert {result.start for result in done.results} == {"identity"}


def test_replace_modules_is_the_same_act():
    model = Model().eval()
    assert ksurgeon.replace_modules(model, LowRank(2), X, targets="attn") is model
    assert isinstance(model.layers[0].attn.query, KLinear)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"what": LowRank(2), "targets": "atn"},
            MatchError,
            'target "atn" matches no site; did you mean attn',
        ),
        ({"what": {"attn": LowRank(2), "nlp": LowRank(2)}}, MatchError, '"nlp" .* did you mean mlp'),
        ({"what": "linear", "targets": "atn"}, MatchError, "did you mean attn"),
        ({"what": LowRank(2), "targets": nn.Conv2d}, MatchError, "target Conv2d matches no site"),
        ({"what": LowRank(99), "targets": "attn"}, MatchError, "rank 99"),
        ({"what": LowRank(2), "targets": "re:("}, RuleError, "not a regular expression"),
        ({"what": LowRank(2), "targets": 3}, RuleError, "a target is a path"),
        ({"what": LowRank(2), "ignore": [3]}, RuleError, "a target is a path"),
        ({"what": {"attn": "low_rank"}}, RuleError, "'attn' needs a structure"),
        ({"what": {}}, RuleError, "at least one"),
        ({"what": 3}, RuleError, "a rule's name"),
        ({"what": "linear", "start": "random"}, RuleError, "goes with structures"),
        ({"what": LowRank(2), "start": "exact"}, RuleError, "needs a map that a K-matrix holds exactly"),
        ({"what": LowRank(2), "start": "exakt"}, RuleError, "start='exakt'"),
    ],
)
def test_refusals_leave_the_model(options, error, message):
    model = Model().eval()
    before = {name: id(module) for name, module in model.named_modules()}
    with pytest.raises(error, match=message):
        ksurgeon.convert(model, example_inputs=X, **options)
    assert {name: id(module) for name, module in model.named_modules()} == before


def test_what_is_ignored_and_not_there_is_said():
    with pytest.warns(UserWarning, match='ignore "lm_hed" matches nothing') as caught:
        replaced(LowRank(2), X, ignore="lm_hed")
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replaced(LowRank(2), X, ignore="re:lm_.*")
