"""Models trained from scratch: variants and seeds side by side, from the command line to the results."""

import json
import os
import shutil
import signal

import pytest
import torch
from PIL import Image

from ksurgeon.cli.training import TerminalListener
from ksurgeon.kernels.cache import cpu_model
from ksurgeon.recipes.job import carry_out
from tests.cli.conftest import LEAVE, run

__all__ = ["run"]

RECIPE = """
schema = 1
name = "tiny"
seeds = 2
latency = true
model = { name = "nets.py:net", input_size = [3, 8, 8], options = { width = 4 } }

[[train]]
kind = "train"
data = "pictures"
test = "pictures"
crop = { size = 8, padding = 1 }
steps = 12
batch = 16
optimiser = "sgd"
lr = 0.05
schedule = "multistep"
evaluate = 2
checkpoint = 1e-6

[[variants]]
name = "narrow"

[[variants]]
name = "wide"
model = { name = "nets.py:net", input_size = [3, 8, 8], options = { width = 8 } }
[[variants.replace]]
find = "pointwise_conv"
with = { structure = "low_rank", share = 0.5 }
start = "random"

[[variants]]
name = "broken"
model = { name = "nets.py:Broken", input_size = [3, 8, 8] }
"""
NETS = """
import time
from pathlib import Path
from torch import nn


class Waits(nn.Module):
    def forward(self, x):
        if self.training and Path(__file__).with_name("slowly").exists():
            time.sleep(0.2)
        return x


def net(width):
    return nn.Sequential(
        Waits(), nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2),
    )


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 2)

    def forward(self, x):
        if self.training:
            raise RuntimeError("out of luck")
        return self.layer(x.flatten(1))
"""


@pytest.fixture
def recipe(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for number in range(64):
        file = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 128, (8, 8, 3), generator=generator) + 64 * (number % 2)
        Image.fromarray(pixels.byte().numpy()).save(file)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    return tmp_path / "tiny.toml"


def test_interrupted_trainings_side_by_side_go_on(recipe, run, monkeypatch):
    arguments = ("run", "tiny.toml", LEAVE, "--device", "cpu", "--jobs", 2)
    step, steps = TerminalListener.step, []

    def interrupted(self, told):
        step(self, told)
        steps.append(told.step)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    slowly = recipe.with_name("slowly")
    slowly.touch()  # a training of some milliseconds may be over before the interrupt comes
    with monkeypatch.context() as patched:
        patched.setattr(TerminalListener, "step", interrupted)
        ran = run(*arguments)
    slowly.unlink()
    assert ran.status == 130 and "--resume" in ran.err, ran.err
    folder = recipe.parent / "runs" / "tiny"
    assert list(folder.glob("*/seed-*.training/0/checkpoints/step-*"))
    ran = run(*arguments[:-1], 1, "--resume")
    assert ran.status == 1 and "continuing after step" in ran.err and "wide, seed 1" in ran.err
    assert "2 of 6 trainings failed" in ran.err and "broken, seed 1: RuntimeError: out of luck" in ran.err
    results = json.loads((folder / "results.json").read_text())
    narrow, wide = (results["variants"][name] for name in ("narrow", "wide"))
    assert list(narrow["seeds"]) == list(wide["seeds"]) == ["0", "1"]
    assert narrow["parameters"] == 4 * 27 + 4 + 8 + 16 + 4 + 10
    assert narrow["multiplications"] == 36 * (27 * 4 + 16) + 8 and wide["latency"]["milliseconds"] > 0
    training = narrow["seeds"]["0"]["training"][0]
    assert training["steps"] == 12 and training["history"][-1]["examples"] == 64
    told = results["statistics"]["wide"]["accuracy"]
    pairs = [
        [variant["seeds"][seed]["after_training"]["accuracy"] for seed in ("0", "1")]
        for variant in (narrow, wide)
    ]
    assert told["difference"]["mean"] == pytest.approx(sum(pairs[1]) / 2 - sum(pairs[0]) / 2)
    assert (folder / "wide" / "seed-1" / "ksurgeon.json").is_file()
    shown = (folder / "results.svg").read_text()
    assert all(f"<!-- {text} -->" in shown for text in ("narrow", "wide", "steps", "thousand parameters"))
    before = json.loads((folder / "results.json").read_text())
    for variant in before["variants"].values():
        del variant["latency"]
    before["machine"]["processor"] = "another"
    (folder / "results.json").write_text(json.dumps(before))
    run(*arguments[:-1], 1, "--resume", "--only", "wide")  # a latency that is not there is measured
    results = json.loads((folder / "results.json").read_text())
    before["variants"]["wide"]["latency"] = results["variants"]["wide"]["latency"]
    assert (
        results["variants"] == before["variants"] and results["variants"]["wide"]["latency"]["milliseconds"]
    )
    assert results["machine"] == before["machine"]
    (here,) = results["resumed_on"]
    assert here == before["machine"] | {"processor": cpu_model()}
    recipe.write_text(RECIPE.replace("lr = 0.05", "lr = 0.06"))
    ran = run(*arguments, "--resume")
    assert ran.status == 1 and "another variant narrow" in " ".join(ran.err.split())
    recipe.write_text(RECIPE.replace('name = "tiny"', 'name = "other"'))
    ran = run(*arguments, "--yes", "-o", "runs/tiny")
    assert ran.status == 1 and "not overwritten" in " ".join(ran.err.split())
    assert json.loads((folder / "results.json").read_text()) == results


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("size = 8, padding", "size = 9, padding"), "8 × 8 is smaller than the crop of 9 × 9"),
        (('"pictures"', '"one"'), "all of 32 examples of one and one have the label 0"),
        (('data = "pictures"', 'data = "nothing"'), "no file or folder nothing"),
        (("input_size = [3, 8, 8] }", "input_size = [3, 8, 8], options = { depth = 2 } }"), "variant broken"),
        (('name = "wide"', 'name = "wide"\noptions = { width = 9 }'), "give model with all its options, or"),
        (
            ('[[variants]]\nname = "narrow"', '[[variants]]\nname = "narrow"\noptions = { depth = 2 }'),
            "depth",
        ),
        (("seeds = 2", 'seeds = 2\nbaseline = "base"'), "baseline is one of narrow, wide, broken"),
        (
            ('name = "narrow"', 'name = "narrow"\nbaseline = "base"'),
            "baseline is one of narrow, wide, broken",
        ),
        (('name = "narrow"', 'name = "narrow"\nsettings = { stepps = 3 }'), "did you mean steps?"),
        (('name = "narrow"', 'name = "narrow"\nsettings = { seed = 3 }'), "that of all its seeds"),
        (("padding = 1 }", 'padding = 1 }\ntransform = "nets.py:net"'), "give crop, or transform"),
        (("padding = 1 }", "padding = 1 }\ntrails = 3"), 'no key of a training; did you mean "trials"'),
        (('kind = "train"', 'kind = "finetune"'), 'needs kind = "train"'),
        (
            ('[[variants]]\nname = "narrow"', '[[train]]\ndata = "a"\n[[variants]]\nname = "narrow"'),
            "no teacher",
        ),
    ],
)
def test_what_is_refused_before_anything_is_trained(change, message, recipe, run):
    shutil.copytree(recipe.parent / "pictures" / "a", recipe.parent / "one" / "a")
    recipe.write_text(RECIPE.replace("latency = true", "").replace(*change))
    ran = run("run", "tiny.toml", LEAVE, "--device", "cpu")
    assert ran.status == 1 and message in " ".join(ran.err.split())
    assert not (recipe.parent / "runs").exists()


def test_a_variant_has_settings_and_a_baseline_of_its_own(recipe, run):
    short = 'name = "short"\nbaseline = "wide"\nsettings = { steps = 3, lr = 0.01 }\n\n[[variants]]\n'
    text = RECIPE.replace("latency = true", "").replace('name = "wide"', short + 'name = "wide"')
    recipe.write_text(text)
    chosen = [word for name in ("narrow", "short", "wide") for word in ("--only", name)]
    ran = run("run", "tiny.toml", LEAVE, "--device", "cpu", "--jobs", 1, "--seeds", 1, *chosen)
    assert ran.status == 0, ran.err
    results = json.loads((recipe.parent / "runs" / "tiny" / "results.json").read_text())
    (short,) = results["variants"]["short"]["seeds"]["0"]["training"]
    assert short["steps"] == 3 and short["settings"]["lr"] == 0.01
    differences = {n: told["accuracy"].get("difference") for n, told in results["statistics"].items()}
    assert differences["narrow"] is None and differences["short"]["against"] == "wide"
    assert "against" not in differences["wide"] and "wide: " in ran.out
    recipe.write_text(text.replace("lr = 0.01", "lr = 0.02"))
    again = ("run", "tiny.toml", LEAVE, "--device", "cpu", "--jobs", 1, "--seeds", 1, "--resume")
    assert run(*again, "--only", "narrow").status == 0
    assert "another variant short" in " ".join(run(*again, "--only", "short").err.split())


def test_students_of_a_teacher_have_seeds_too(recipe, run, monkeypatch):
    """``--seeds`` with any recipe; the model before surgery is the same for all."""

    def carried_out_here(jobs, count, told, finished):
        for job in jobs:
            finished(job, carry_out(job, told), "")

    monkeypatch.setattr("ksurgeon.recipes.run.carry_out_all", carried_out_here)
    text = RECIPE[: RECIPE.index("[[variants]]")].replace("latency = true", "").replace("seeds = 2", "")
    text = text.replace('kind = "train"', 'kind = "distill"') + '[[variants]]\nname = "same"\n'
    recipe.write_text(text.replace("steps = 12", 'steps = 2\ntask = "classification"'))
    ran = run("run", "tiny.toml", LEAVE, "--device", "cpu", "--seeds", 2)
    assert ran.status == 0, ran.err
    assert "same" in ran.out and "results.svg" in ran.out
    results = json.loads((recipe.parent / "runs" / "tiny" / "results.json").read_text())
    assert list(results["variants"]["same"]["seeds"]) == ["0", "1"] and "dense" in results
