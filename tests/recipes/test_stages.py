"""Stages of some variants, without labels, in several trials; and quick runs."""

import json

import pytest
import torch

from ksurgeon.errors import FolderError, RecipeError, TrainingError
from ksurgeon.recipes.digest import digest_of
from ksurgeon.recipes.job import Job, carry_out
from ksurgeon.recipes.places import functions_of
from ksurgeon.recipes.run import run_recipe
from ksurgeon.recipes.schema import load_recipe
from ksurgeon.recipes.scratch import FROM_SCRATCH
from ksurgeon.train.log import Listener
from tests.cli.conftest import LEAVE, run

__all__ = ["run"]

RECIPE = """
schema = 1
name = "tiny"
seeds = 2
model = { name = "nets.py:net", input_size = [4] }

[quick]
only = ["plain"]
seeds = 1
settings = { steps = 1 }

[[train]]
kind = "train"
data = "nets.py:unlabelled"
loss = "nets.py:smallness"
only = ["small"]
trials = 3
steps = 4
batch = 8
lr = 0.01

[[train]]
kind = "train"
data = "nets.py:labelled"
steps = 2
batch = 8

[[variants]]
name = "plain"

[[variants]]
name = "small"
"""
NETS = """
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Dropout(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def unlabelled():
    return list(torch.randn(64, 4, generator=torch.Generator().manual_seed(0)))


def labelled():
    return [(value, number % 2) for number, value in enumerate(unlabelled())]


def smallness(model, inputs, progress):
    return model(*inputs).square().mean(1)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def loaded(folder, *change):
    (folder / "tiny.toml").write_text(RECIPE.replace(*change) if change else RECIPE)
    return load_recipe(folder / "tiny.toml")


def job(folder, recipe, number):
    return Job(
        recipe=recipe, variant=recipe.variants[number], place=folder / "student", places={}, resume=False,
        device="cpu", options={"dropout": True},
    )  # fmt: skip


def test_a_stage_of_some_variants_goes_on_from_its_best_trial(folder, monkeypatch):
    recipe, begun = loaded(folder), []
    monkeypatch.setattr("ksurgeon.recipes.job.finetune", _noting(begun))
    plain, small = (carry_out(job(folder, recipe, number), Listener()) for number in (0, 1))
    assert [len(done["training"]) for done in (plain, small)] == [1, 2]
    losses = small["training"][0]["trials"]
    assert len(set(losses)) == 3, "each trial has other random numbers"
    assert "trials" not in small["training"][1] and small["after_training"]["accuracy"] >= 0
    first, *trials, last = begun
    assert first["loss"] is None and last["loss"] is None and all(trial["loss"] for trial in trials)
    assert all(torch.equal(trial["weight"], trials[0]["weight"]) for trial in trials)
    best = trials[losses.index(min(losses))]["model"]
    assert last["model"] is best and torch.equal(first["weight"], trials[0]["weight"])
    assert sum(trial["seconds"] for trial in trials) == pytest.approx(small["training"][0]["seconds"])


def test_trials_that_fail_are_left_out_and_all_differ_in_order(folder, monkeypatch):
    """Without random layers and starts trials still differ: each has its own order of the examples."""
    from ksurgeon.train.distill import finetune

    def failing(model, data, *, loss=None, **options):
        if loss is not None and data.seed == 100_000:
            raise TrainingError("the loss is not finite")
        return finetune(model, data, loss=loss, **options)

    def always_failing(*_, **__):
        raise TrainingError("the loss is not finite")

    recipe = loaded(folder)
    (folder / "nets.py").write_text(NETS.replace("nn.Dropout()", "nn.Identity()"))
    monkeypatch.setattr("ksurgeon.recipes.job.finetune", failing)
    first, failed, third = carry_out(job(folder, recipe, 1), Listener())["training"][0]["trials"]
    assert failed is None and first != third
    monkeypatch.setattr("ksurgeon.recipes.job.finetune", always_failing)
    with pytest.raises(TrainingError, match="not finite"):
        carry_out(job(folder, recipe, 1), Listener())


def _noting(begun):
    from ksurgeon.train.distill import finetune

    def noted(model, data, *, loss=None, **options):
        begun.append({"model": model, "loss": loss, "weight": model[1].weight.detach().clone()})
        trained = finetune(model, data, loss=loss, **options)
        begun[-1]["seconds"] = trained.seconds
        return trained

    return noted


def test_what_a_stage_of_other_variants_says_changes_no_digest(folder):
    before = loaded(folder)
    after = loaded(folder, "trials = 3", "trials = 4")
    quick = loaded(folder, "steps = 1 }", "steps = 3 }")
    digests = [[digest_of(recipe, v, {}) for v in recipe.variants] for recipe in (before, after, quick)]
    assert digests[0][0] == digests[1][0] and digests[0][1] != digests[1][1] and digests[0] == digests[2]
    assert "nets.py:smallness" in functions_of(before)


def test_a_stage_in_front_for_others_moves_no_checkpoints(folder):
    recipe = loaded(folder)
    carry_out(job(folder, recipe, 0), Listener())
    assert [place.name for place in (folder / "student.training").iterdir()] == ["0"]


def test_other_defaults_are_another_training(folder, monkeypatch):
    recipe = loaded(folder)
    before = digest_of(recipe, recipe.variants[0], {})
    monkeypatch.setitem(FROM_SCRATCH, "clip", 1.0)
    assert digest_of(recipe, recipe.variants[0], {}) != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('only = ["small"]', 'only = ["smal"]'), 'only names "smal"; the variants are plain, small'),
        (('only = ["small"]', "only = []"), "only"),
        (("steps = 2", 'only = ["small"]\nsteps = 2'), "variant plain is trained by no stage"),
        (
            ('kind = "train"\ndata = "nets.py:unlabelled"', 'data = "nets.py:unlabelled"'),
            "takes the place of labels",
        ),
        (('only = ["plain"]', 'only = ["plane"]'), 'quick.only names "plane"'),
    ],
)
def test_what_is_refused(change, message, folder):
    with pytest.raises(RecipeError, match=message):
        loaded(folder, *change)


def test_a_loss_that_is_not_there_is_told_before_anything_is_trained(folder):
    recipe = loaded(folder, "nets.py:smallness", "nets.py:smoothness")
    with pytest.raises(RecipeError, match='has no function "smoothness"'):
        run_recipe(recipe, folder / "runs", device="cpu", trust_remote_code=True)
    assert not (folder / "runs").exists()


def test_a_loss_that_raises_is_told_before_anything_is_trained(folder):
    (folder / "nets.py").write_text(NETS.replace("model(*inputs).square()", "model(inputs).square()"))
    with pytest.raises(RecipeError, match="variant small: the loss smallness raised TypeError"):
        run_recipe(loaded(folder), folder / "runs", device="cpu", trust_remote_code=True)
    assert not (folder / "runs").exists()


def test_a_quick_run_is_never_taken_for_a_whole_one(folder, run):
    loaded(folder)
    ran = run("run", "tiny.toml", LEAVE, "--quick", "--device", "cpu", "--jobs", 1)
    assert ran.status == 0, ran.err
    file = folder / "runs" / "tiny-quick" / "results.json"
    results = json.loads(file.read_text())
    assert results["quick"] and list(results["variants"]) == ["plain"]
    (done,) = results["variants"]["plain"]["seeds"].values()
    assert done["training"][0]["steps"] == 1 and done["training"][0]["settings"]["steps"] == 1
    recipe = load_recipe(folder / "tiny.toml")
    with pytest.raises(FolderError, match="of a quick run, which do not go together with those of the whole"):
        run_recipe(recipe, file.parent, device="cpu", trust_remote_code=True, only=("plain",))
    assert json.loads(file.read_text()) == results
    for options, message in (
        ({"settings": {"stepps": 1}}, "stepps is no setting"),
        ({"settings": {"seed": 1}}, "that of all its seeds"),
    ):
        other = recipe.model_copy(update={"quick": recipe.quick.model_copy(update=options)})
        with pytest.raises((TrainingError, RecipeError), match=message):
            run_recipe(other, folder / "other", quick=True, device="cpu", trust_remote_code=True)
    (folder / "tiny.toml").write_text(RECIPE[: RECIPE.index("[quick]")] + RECIPE[RECIPE.index("[[train]]") :])
    ran = run("run", "tiny.toml", LEAVE, "--quick")
    assert ran.status == 1 and "has no quick run; give it a table [quick]" in " ".join(ran.err.split())
