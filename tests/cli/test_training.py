"""The commands distill, finetune and run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ksurgeon
from ksurgeon.cli.training import TerminalListener
from ksurgeon.errors import FolderError
from ksurgeon.recipes.schema import load_recipe
from ksurgeon.report.recipe import curves_of
from ksurgeon.surgery.record_file import read_record
from tests.cli.conftest import LEAVE
from tests.train import texts
from tests.train.conftest import pair

FAST = ("--steps", 4, "--batch", 8, "--device", "cpu", "--set", "layerwise=2", "--set", "evaluate=2")


@pytest.fixture(autouse=True)
def _cache_of_its_own(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    texts.save("encoder", folder / "model")
    (folder / "a.txt").write_text("\n".join(texts.sentences()))
    script = [sys.executable, "-m", "ksurgeon", "convert", "model", "-r", "linear", "-o", "small"]
    subprocess.run(script, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def converted(made, run, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_distil_a_folder(converted, run):
    ran = run("distill", "small", "--data", "a.txt", *FAST)
    assert ran.status == 0, ran.err
    assert "before" in ran.out and "cosine" in ran.out and "small-distilled" in ran.out
    (training,) = read_record(converted / "small-distilled").trainings
    assert training.teacher == "model" and training.steps == 4
    assert ksurgeon.load(converted / "small-distilled", trust_remote_code=True) is not None
    log = converted / "small-distilled.training" / "log.jsonl"
    assert {"stage", "step", "evaluation"} <= {json.loads(line)["event"] for line in log.open()}
    again = run("distill", "small", "--data", "a.txt", *FAST)
    assert again.status == 1 and "--yes" in again.err
    ran = run("distill", "small", "--data", "a.txt", *FAST, "--gradual", 2, "--yes", "--json")
    assert ran.status == 0 and json.loads(ran.out)["steps"] == 2


def test_interrupted_gradual_surgery_goes_on(tmp_path, run, monkeypatch):
    ksurgeon.save(pair()[0], tmp_path / "small")
    data = "tests.train.conftest:vectors"
    often = ("--set", "checkpoint=1e-6")
    arguments = ("distill", "small", LEAVE, "--data", data, *FAST, "--gradual", 2, *often)
    assert run(*arguments, "-o", "whole").status == 0
    step = TerminalListener.step
    seen = []

    def interrupted(self, told):
        step(self, told)
        seen.append(told.step)
        if len(seen) == 3:  # the first of the second group
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TerminalListener, "step", interrupted)
    ran = run(*arguments)
    assert ran.status == 130 and "--resume" in ran.err and not (tmp_path / "small-distilled").exists()
    assert "group 1 of 2: error" in ran.err and "(teacher 0.0000)" in ran.err

    def full(*_):
        raise FolderError("no space is left on the disk")

    with monkeypatch.context() as patched:
        patched.setattr("ksurgeon.cli.train.save", full)
        ran = run(*arguments, "--resume")
        assert ran.status == 1 and "no space" in ran.err
    ran = run(*arguments, "--resume")
    assert ran.status == 0, ran.err
    assert "continuing after group 2 of 2" in ran.err and "group 2: error" in ran.out
    assert seen == [1, 2, 1, 2]
    whole, resumed = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "small-distilled")
    )
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[n], resumed[n]) for n in whole)
    assert not (tmp_path / "small-distilled.training" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("distill", "small", "-d", "nothing.txt"), "no file or folder nothing.txt"),
        (("distill", "small", "-d", "a.txt", "--set", "lrr=3"), "lrr is no setting"),
        (("distill", "small", "-d", "a.txt", "--set", "lr"), "NAME=VALUE"),
        (("distill", "small", "-d", "a.txt", "--teacher", "resnet18"), "do not match"),
        (("distill", "model", "-d", "a.txt"), "ksurgeon.json"),
        (("finetune", "small", "-d", "a.txt", "--steps", 2, "--device", "cpu"), "nothing to learn"),
    ],
)
def test_what_cannot_be_distilled(arguments, message, converted, run):
    ran = run(*arguments)
    assert ran.status == 1 and message in " ".join(ran.err.split())
    assert "Traceback" not in ran.err and not (converted / "small-distilled").exists()


RECIPE = """
schema = 1
name = "tiny"
prepare = "tiny.py:prepare"
evaluate = "tiny.py:evaluate"

[model]
name = "{model}"

[calibrate]
data = "{texts}"
examples = 16

[[train]]
data = "{texts}"
steps = 3
batch = 8
evaluate = 1
layerwise = 2

[[variants]]
name = "k"
rule = "linear"

[[variants]]
name = "low"
[[variants.replace]]
find = "linear"
with = { structure = "low_rank", share = 0.5 }

[[variants]]
name = "pruned"
prune = { targets = ["Linear"], share = 0.5 }

[[variants]]
name = "planned"
search = { budget = "params=0.5", structures = ["low_rank"] }
"""
FUNCTIONS = """
def prepare(folder):
    return {"model": "model", "texts": "a.txt"}


def evaluate(model, places):
    return {"size": sum(p.numel() for p in model.parameters())}
"""


def test_a_recipe_from_surgery_to_results(run, tmp_path):
    texts.save("encoder", tmp_path / "model")
    (tmp_path / "a.txt").write_text("\n".join(texts.sentences()))
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "tiny.py").write_text(FUNCTIONS)
    ran = run("run", "tiny.toml", LEAVE, "--only", "k", "--only", "pruned", "--device", "cpu")
    assert ran.status == 0, ran.err
    file = tmp_path / "runs" / "tiny" / "results.json"
    results = json.loads(file.read_text())
    assert list(results["variants"]) == ["k", "pruned"] and results["machine"]["torch"]
    done = results["variants"]["k"]
    assert done["parameters"] < results["dense"]["parameters"]
    assert done["training"][0]["steps"] == 3 and done["after_training"]["size"] == done["parameters"]
    assert ksurgeon.load(tmp_path / "runs" / "tiny" / "k", trust_remote_code=True) is not None
    assert (tmp_path / "runs" / "tiny" / "k" / "tokenizer_config.json").is_file()
    assert run("run", "tiny.toml", LEAVE).status == 1
    ran = run("run", "tiny.toml", LEAVE, "--resume", "--set", "steps=2", "--plot", "curve.svg")
    assert ran.status == 0 and "low" in ran.out and "curve.svg" in ran.out
    assert all(f"<!-- {name} -->" in (tmp_path / "curve.svg").read_text() for name in ("k", "low", "size"))
    ran = run("run", "tiny.toml", LEAVE, "--resume", "--plot", "curve.doc")
    assert ran.status == 1 and ".svg" in ran.err
    after = json.loads(file.read_text())["variants"]
    assert after["k"] == done and after["low"]["training"][0]["steps"] == 2
    assert done["device"] == "cpu" and done["training"][0]["settings"]["steps"] == 3
    assert after["low"]["training"][0]["settings"]["steps"] == 2
    assert after["planned"]["parameters"] < results["dense"]["parameters"]
    assert "params=0.5" in (tmp_path / "runs" / "tiny" / "planned.plan.toml").read_text()


def test_a_plan_that_was_found_is_taken_again_on_resume(run, tmp_path):
    texts.save("encoder", tmp_path / "model")
    (tmp_path / "a.txt").write_text("\n".join(texts.sentences()))
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("params=0.5", "params=0.02"))
    (tmp_path / "tiny.py").write_text(FUNCTIONS)
    folder = tmp_path / "runs" / "tiny"
    ran = run("run", "tiny.toml", LEAVE, "--only", "k", "--only", "planned", "--device", "cpu")
    assert ran.status == 1 and "variant planned: the budget params=0.02 cannot be met" in ran.err
    assert list(json.loads((folder / "results.json").read_text())["variants"]) == ["k"]
    (tmp_path / "tiny.toml").write_text(RECIPE)
    assert run("run", "tiny.toml", LEAVE, "--only", "planned", "--resume", "--device", "cpu").status == 0
    plan = folder / "planned.plan.toml"
    plan.write_text(plan.read_text() + "# kept\n")

    def again(recipe):
        kept = json.loads((folder / "results.json").read_text())
        (folder / "results.json").write_text(json.dumps({**kept, "variants": {}}))
        (tmp_path / "tiny.toml").write_text(recipe)
        ran = run("run", "tiny.toml", LEAVE, "--only", "planned", "--resume", "--device", "cpu")
        assert ran.status == 0, ran.err
        return ran.err

    assert "the plan that was found before" in again(RECIPE) and "# kept" in plan.read_text()
    assert "found before" not in again(RECIPE.replace("params=0.5", "params=0.9"))
    assert "params=0.9" in plan.read_text()


def test_students_that_differ_in_a_number_make_a_curve():
    sizes = {"low-50": 5, "low-25": 4, "k-rank-9": 3, "k": 2, "7": 1}
    results = {
        "dense": {"parameters": 10, "metrics": {"a": 1.0}},
        "variants": {name: {"parameters": size} for name, size in sizes.items()},
    }
    curves = {name: [share for share, _ in points] for name, points in curves_of(results).items()}
    assert curves == {"low": [40, 50], "k-rank": [30], "k": [20], "7": [10]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('rule = "linear"', 'rul = "linear"'), "variants.1.rul"),
        (("{texts}", "{words}"), "names 'words'"),
        (("tiny.py:prepare", "tiny.py:nothing"), "no function"),
        (("steps = 3", "stps = 3"), "stps is no setting"),
        (("schema = 1", "schema = 2"), "schema"),
        (("[model]", "[model"), "tiny.toml"),
        (("params=0.5", "params=2"), "variants.4.search.budget"),
        (('low_rank"]', 'lowrank"]'), "structures are of"),
        (('name = "low"', 'name = "k"'), "two variants k"),
        (('name = "low"', 'name = "k.training"'), "its own k.training"),
        (('name = "low"', 'name = "results.part"'), "its own results.part"),
        (('[calibrate]\ndata = "{texts}"\nexamples = 16', ""), "needs [calibrate] data"),
    ],
)
def test_recipes_that_make_no_sense(change, message, run, tmp_path):
    texts.save("encoder", tmp_path / "model")
    (tmp_path / "a.txt").write_text("\n".join(texts.sentences()))
    (tmp_path / "tiny.toml").write_text(RECIPE.replace(*change))
    (tmp_path / "tiny.py").write_text(FUNCTIONS)
    ran = run("run", "tiny.toml", LEAVE)
    assert ran.status == 1 and message in " ".join(ran.err.split())
    assert not (tmp_path / "runs").exists()


def test_built_in_recipes_are_well_formed(run):
    for name in ("minilm", "efficientnet_lite0"):
        recipe = load_recipe(name)
        assert recipe.name == name and (recipe.folder / recipe.prepare.partition(":")[0]).is_file()
    assert "minilm" in run("run", "nothing").err
    assert Path("nothing").exists() is False
