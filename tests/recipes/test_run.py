"""What results and checkpoints a run goes on from, and what it refuses; trainings stand in for themselves."""

import json
from math import isnan
from types import SimpleNamespace

import pytest
from torch import nn

from ksurgeon.errors import FolderError, RecipeError
from ksurgeon.recipes.job import Job, carry_out, evaluate
from ksurgeon.recipes.run import run_recipe
from ksurgeon.recipes.schema import load_recipe
from ksurgeon.report.seeds import draw_seeds, seeds_table
from ksurgeon.train.log import Listener

RECIPE = """
schema = 1
name = "tiny"
seeds = 2
model = { name = "nets.py:net", input_size = [4] }
evaluate = "nets.py:evaluate"

[[train]]
kind = "train"
data = "nets.py:data"
steps = 1

[[variants]]
name = "plain"

[[variants]]
name = "ruled"
rule = "mine.toml"
"""
RULE = """
schema = 1
name = "mine"
[[replace]]
find = "linear"
with = { structure = "low_rank", share = 0.5 }
start = "random"
"""
NETS = """
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def data():
    return [(torch.randn(4), number % 2) for number in range(40)]


def nothing():
    data()


def evaluate(model, places):
    return {"accuracy": 7.0}


def taken(model, places):
    return {"seconds": 7.0}
"""


@pytest.fixture
def folder(tmp_path):
    for name, text in (("tiny.toml", RECIPE), ("mine.toml", RULE), ("nets.py", NETS)):
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def trainings(monkeypatch, request):
    """Whether each training of a run found checkpoints; ``fails`` names those that come to no end."""
    found, fails = {}, set()
    shift = getattr(request, "param", 10)

    def trained(jobs, count, told, finished):
        found.clear()
        for job in jobs:
            found[job.name] = job.work.exists()
            job.work.mkdir(parents=True, exist_ok=True)
            if job.name in fails:
                finished(job, None, "out of luck")
                continue
            value = job.recipe.seed + (shift if job.variant.name == "ruled" else 0.0)
            stage = {"seconds": 1.0, "steps": 1, "history": [{"step": 1, "seconds": 1.0, "loss": 1.0}]}
            done = {"parameters": 1, "after_training": {"accuracy": value}, "training": [stage]}
            finished(job, done, "")

    monkeypatch.setattr("ksurgeon.recipes.run.carry_out_all", trained)
    return SimpleNamespace(found=found, fails=fails)


def _run(folder, *change, **options):
    (folder / "tiny.toml").write_text(RECIPE.replace(*change) if change else RECIPE)
    options = {"device": "cpu", "trust_remote_code": True, **options}
    return run_recipe(load_recipe(folder / "tiny.toml"), folder / "runs", **options)


def test_checkpoints_are_those_of_this_run(folder, trainings):
    trainings.fails.update(("plain, seed 1", "ruled, seed 0"))
    for resume in (False, True):
        with pytest.raises(RecipeError, match=r"2 of [24] trainings failed"):
            _run(folder, resume=resume)
        assert set(trainings.found.values()) == {resume}
    with pytest.raises(RecipeError, match="2 of 4"):
        _run(folder, "steps = 1", "steps = 2")
    assert not any(trainings.found.values())
    with pytest.raises(RecipeError, match="1 of 2"):
        _run(folder, only=("plain",))
    trainings.fails.clear()
    _run(folder, resume=True)  # what is left of the other variant is of a run before
    assert trainings.found == {"plain, seed 1": True, "ruled, seed 0": False, "ruled, seed 1": False}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("nets.py", "nn.ReLU()", "nn.GELU()"), ("mine.toml", "0.5", "0.9"), ("tiny.toml", "s = 1", "s = 2")],
)
def test_variants_are_others_with_other_files(file, old, new, folder, trainings):
    _run(folder)
    (folder / file).write_text((folder / file).read_text().replace(old, new))
    recipe = load_recipe(folder / "tiny.toml")
    with pytest.raises(FolderError, match="a file that it names, or settings were changed"):
        run_recipe(recipe, folder / "runs", resume=True, device="cpu", trust_remote_code=True)


def test_another_baseline_gives_other_differences(folder, trainings):
    assert _run(folder)["statistics"]["ruled"]["accuracy"]["difference"]["mean"] == 10
    _run(folder, "seeds = 2", 'seeds = 2\nbaseline = "ruled"', resume=True)
    statistics = json.loads((folder / "runs" / "results.json").read_text())["statistics"]
    assert statistics["plain"]["accuracy"]["difference"]["mean"] == -10
    assert "difference" not in statistics["ruled"]["accuracy"] and not trainings.found


@pytest.mark.parametrize("trainings", [float("nan")], indirect=True)
def test_a_metric_that_is_no_number_ends_nothing(folder, trainings):
    _run(folder)
    results = _run(folder, resume=True)
    difference = results["statistics"]["ruled"]["accuracy"]["difference"]
    assert isnan(difference["mean"]) and "interval" not in difference and not trainings.found
    assert results["statistics"]["plain"]["accuracy"]["mean"] == 0.5
    seeds_table(results)
    draw_seeds(results, folder / "results.svg")


@pytest.mark.parametrize(
    "damage",
    [
        lambda results: results.pop("variants"),
        lambda results: results.update(variants=[]),
        lambda results: results["variants"]["plain"].pop("parameters"),
        lambda results: results["variants"]["plain"].update(seeds=3),
        lambda results: results["variants"]["plain"]["seeds"]["0"].update(training=[{"seconds": 1}]),
        lambda results: results.update(digests=None),
    ],
)
def test_damaged_results_are_refused(damage, folder, trainings):
    _run(folder)
    file = folder / "runs" / "results.json"
    results = json.loads(file.read_text())
    damage(results)
    file.write_text(json.dumps(results))
    with pytest.raises(FolderError, match=r"results\.json is damaged"):
        _run(folder, resume=True)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (("steps = 1", "steps = 1\nseed = 3"), {}, "that of all its seeds"),
        ((), {"seed": 3}, "that of all its seeds"),
        (("steps = 1", 'steps = 1\ntest = "nets.py:nothing"'), {}, "nets.py:nothing returned None"),
        (("steps = 1", "crop = { size = 8, padding = 2, scale = [0.1, 1.0] }"), {}, "give padding, or scale"),
    ],
)
def test_what_has_no_meaning_is_refused(change, options, message, folder, trainings):
    with pytest.raises(RecipeError, match=message):
        _run(folder, *change, **options)
    assert not (folder / "runs").exists()


def test_names_of_metrics_that_are_taken(folder):
    recipe = load_recipe(folder / "tiny.toml")
    options = {"places": {}, "resume": False, "device": "cpu", "options": {}}
    done = carry_out(
        Job(recipe=recipe, variant=recipe.variants[0], place=folder / "x", **options), Listener()
    )
    assert done["after_training"]["accuracy"] == 7 and 0 <= done["after_training"]["held_out_accuracy"] <= 1
    assert "loss" in done["after_training"]
    with pytest.raises(RecipeError, match="returns the metric seconds, which is the time of training"):
        evaluate(recipe.model_copy(update={"evaluate": "nets.py:taken"}), nn.Identity(), {}, Listener(), "it")
