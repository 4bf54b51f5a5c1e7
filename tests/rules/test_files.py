"""Plans as files that people edit."""

import pytest
import torch

import ksurgeon
from ksurgeon.errors import PlanError
from ksurgeon.find import find
from ksurgeon.kmatrix.structures import Kaleidoscope, LowRank
from ksurgeon.rules import Insertion, Rule, load_rule, make_plan
from ksurgeon.rules.files import checked_plan, read_plan, write_plan
from tests import zoo


@pytest.fixture
def file(tmp_path):
    sites = find(zoo.mlp(), zoo.example("mlp"))
    write_plan(make_plan(sites, load_rule("low_rank")), tmp_path / "deep" / "plan.toml")
    return tmp_path / "deep" / "plan.toml"


def edited(file, *pairs):
    text = file.read_text()
    for old, new in pairs:
        assert old in text, text
        text = text.replace(old, new, 1)
    file.write_text(text)
    return file


def test_a_plan_goes_through_a_file(file):
    sites = find(zoo.mlp(), zoo.example("mlp"))
    wanted = make_plan(sites, load_rule("low_rank"))
    assert read_plan(file) == wanted
    assert checked_plan(read_plan(file), sites) == wanted
    assert file.read_text().startswith("# A plan of ksurgeon.")
    other = file.with_name("other")
    other.touch()
    assert file.stat().st_mode == other.stat().st_mode  # others of a group may read it, too
    assert sorted(file.parent.iterdir()) == [other, file]


def test_edits_count(file):
    text = edited(file, ('action = "replace"', 'action = "leave"')).read_text()
    start = text.index("with = ", text.index('path = "down"'))
    end = text.index("\n", start)
    file.write_text(text[:start] + 'with = { structure = "low_rank", rank = 3 }' + text[end:])
    converted = ksurgeon.convert(zoo.mlp(), plan=read_plan(file), example_inputs=zoo.example("mlp"))
    decisions = {d.path: d for d in converted.plan.decisions}
    assert decisions["up"].action == "leave" and type(converted.model.up) is torch.nn.Linear
    assert decisions["down"].structure == LowRank(rank=3)
    assert decisions["down"].parameters_after == 3 * (64 + 256)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("schema = 1", "schema = 2")], "schema is 2"),
        (
            [('action = "replace"', 'action = "replaced"')],
            r"decisions\[1\].action: allowed: 'replace' or 'leave'",
        ),
        ([("kind =", "kindd =")], r'decisions\[1\].kindd: unknown key; did you mean "kind"'),
        (
            [('{structure = "low_rank"', '{structure = "low"')],
            r"no structure .low.; allowed: .*kaleidoscope",
        ),
        ([('path = "up"', "path = up")], "not valid TOML"),
        ([("share = ", "shares = ")], "shares: unknown key"),
    ],
)
def test_what_a_plan_may_not_say(file, pairs, expected):
    with pytest.raises(PlanError, match=expected):
        read_plan(edited(file, *pairs))


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([('path = "up"', 'path = "upper"')], "upper: the model has no such linear site"),
        ([("in_features = 64", "in_features = 65")], "the plan is for 65 → 256, the site is 64 → 256"),
        ([("share = 0.5", "rank = 1000")], "rank 1000"),
    ],
)
def test_plans_of_another_model_change_nothing(file, pairs, expected):
    model = zoo.mlp()
    with pytest.raises(PlanError, match=expected):
        ksurgeon.convert(model, plan=read_plan(edited(file, *pairs)), example_inputs=zoo.example("mlp"))
    assert not any(type(module).__name__ == "KLinear" for module in model.modules())


def test_a_missing_plan(tmp_path):
    with pytest.raises(PlanError, match="no such plan"):
        read_plan(tmp_path / "none.toml")


def test_insertions_go_through_a_file(tmp_path):
    model, x = zoo.mlp(), zoo.example("mlp")
    sites, part = find(model, x, insertions=True), Insertion(before=("up",), dim=1, structure=Kaleidoscope())
    wanted = make_plan(sites, Rule(name="inserted", insert=(part,)))
    write_plan(wanted, tmp_path / "plan.toml")
    assert checked_plan(read_plan(tmp_path / "plan.toml"), sites) == wanted
    assert [decision.path for decision in wanted.replacements] == ["up:before.dim1"]
    (result,) = ksurgeon.convert(model, plan=read_plan(tmp_path / "plan.toml"), example_inputs=x).results
    assert (result.path, result.start) == ("up.kbefore0", "exact")
    edited(tmp_path / "plan.toml", ('structure = "kaleidoscope"', 'structure = "low_rank", rank = 2'))
    with pytest.raises(PlanError, match=r"up:before\.dim1: .* cannot be the identity"):
        ksurgeon.convert(zoo.mlp(), plan=read_plan(tmp_path / "plan.toml"), example_inputs=x)
