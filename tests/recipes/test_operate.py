"""The surgery of a recipe's variant."""

from copy import deepcopy

import pytest
import torch

import ksurgeon
from ksurgeon.models.opening import open_model
from ksurgeon.recipes.operate import operate
from ksurgeon.recipes.schema import load_recipe
from ksurgeon.rules.schema import Rule
from ksurgeon.train.data import open_data
from ksurgeon.train.log import Listener
from ksurgeon.train.settings import make_settings
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
    for module in ("ksurgeon.surgery.convert", "ksurgeon.planner.search"):
        monkeypatch.setattr(f"{module}.open_data", watched)
    for variant in recipe.variants:
        operate(recipe, variant, open_model("model"), {}, tmp_path, False, Listener())
    assert taken == [600, 600, 600]
