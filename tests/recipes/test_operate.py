"""The surgery of a recipe's variant."""

from copy import deepcopy

import pytest
import torch

import ksurgeon
from ksurgeon.errors import RecipeError
from ksurgeon.models.opening import open_model
from ksurgeon.recipes.operate import operate
from ksurgeon.recipes.schema import load_recipe
from ksurgeon.rules.schema import Rule
from ksurgeon.surgery.record import record_of
from ksurgeon.train.data import open_data
from ksurgeon.train.log import Listener
from ksurgeon.train.settings import make_settings
from tests.fields import TRUTH
from tests.train import texts

RECIPE = """
schema = 1
name = "tiny"

[model]
name = "model"

[calibrate]
data = "a.txt"
examples = 16
{compensate}

[[train]]
data = "a.txt"
steps = 1

[[variants]]
name = "low"
[[variants.replace]]
find = "linear"
with = {{ structure = "low_rank", share = 0.5 }}
start = "fit"
"""


INSERTING = """
schema = 1
name = "tiny"

[model]
name = "model"

[[variants]]
name = "both"
[[variants.insert]]
before = ['re:.*layer\\.0\\.intermediate\\.dense']
dim = -1
with = { structure = "kaleidoscope" }
start = "orthogonal"
[[variants.replace]]
find = "linear"
with = { structure = "dense" }
start = "exact"
"""


@pytest.mark.parametrize("compensate", [True, False])
def test_a_variant_is_what_convert_makes(compensate, tmp_path, monkeypatch):
    """With the same examples, fitted in the same way."""
    monkeypatch.chdir(tmp_path)
    texts.save("encoder", tmp_path / "model")
    (tmp_path / "a.txt").write_text("\n".join(texts.sentences(16)))
    line = "" if compensate else "compensate = false"
    (tmp_path / "tiny.toml").write_text(RECIPE.format(compensate=line))
    recipe = load_recipe(str(tmp_path / "tiny.toml"))
    source = open_model("model")
    student = operate(recipe, recipe.variants[0], source, {}, tmp_path, False, Listener())
    data = open_data("a.txt", source.model, make_settings(held_out=0))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    batches = [batch["inputs"] for batch in data.batches(order, 16)]
    rule = Rule(name="low", replace=recipe.variants[0].replace)
    expected = {}
    for way in (True, False):
        other = deepcopy(source.model)
        ksurgeon.convert(other, rule, source.example_inputs, data=batches, compensate=way)
        expected[way] = other.state_dict()
    torch.testing.assert_close(student.state_dict(), expected[compensate])
    assert any((expected[True][name] - expected[False][name]).abs().max() > 1e-4 for name in expected[True])


def test_a_variant_may_insert(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts.save("encoder", tmp_path / "model")
    (tmp_path / "tiny.toml").write_text(INSERTING)
    recipe = load_recipe(str(tmp_path / "tiny.toml"))
    student = operate(recipe, recipe.variants[0], open_model("model"), {}, tmp_path, False, Listener())
    inserted, *replaced = sorted(record_of(student).operations, key=lambda o: o.kind)
    assert (inserted.kind, inserted.start) == ("insertion", "orthogonal")
    assert len(replaced) >= 1 and {o.kind for o in replaced} == {"linear"}


ARRANGING = """
schema = 1
name = "tiny"

[model]
name = "tests.fields:classifier"
input_size = [1, 8, 8]

[calibrate]
data = "tests.fields:batches"
examples = 1000

[[variants]]
name = "arranged"
[[variants.insert]]
before = ["1"]
dim = 1
with = { structure = "kaleidoscope" }
start = "geometry"
grid = [8, 8]
"""


def test_a_variant_may_start_from_geometry(tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(ARRANGING)
    recipe = load_recipe(file)
    source = open_model("tests.fields:classifier", input_size=(1, 8, 8))
    student = operate(recipe, recipe.variants[0], source, {}, tmp_path, False, Listener())
    (operation,) = record_of(student).operations
    assert ksurgeon.neighbour_share(operation.permutation, TRUTH, (8, 8)) >= 0.95
    before, _, rest = ARRANGING.partition("[calibrate]")
    file.write_text(before + rest[rest.index("[[variants]]") :])
    with pytest.raises(RecipeError, match=r'variant arranged has start = "geometry", which needs \[calib'):
        load_recipe(file)


def test_all_examples_that_the_recipe_asks_for_are_used(tmp_path, monkeypatch):
    """More than convert and plan take when they are not told."""
    monkeypatch.chdir(tmp_path)
    texts.save("encoder", tmp_path / "model")
    (tmp_path / "a.txt").write_text("\n".join(texts.sentences(600)))
    text = RECIPE.format(compensate="compensate = false").replace("examples = 16", "examples = 600")
    (tmp_path / "tiny.toml").write_text(
        text + '\n[[variants]]\nname = "found"\nsearch = {budget = "params=0.5"}\n'
    )
    recipe = load_recipe(str(tmp_path / "tiny.toml"))
    taken = []

    def watched(*arguments, **options):
        found = read(*arguments, **options)
        taken.append(sum(batch["input_ids"].shape[0] for batch in (*found.fit, *found.check)))
        return found

    read = ksurgeon.calibrate.data.open_data
    for module in ("ksurgeon.surgery.carry_out", "ksurgeon.planner.search"):
        monkeypatch.setattr(f"{module}.open_data", watched)
    for variant in recipe.variants:
        operate(recipe, variant, open_model("model"), {}, tmp_path, False, Listener())
    assert taken == [600, 600, 600]
