"""Variants that begin with the trained model of another, and have it for a teacher."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from ksurgeon.errors import RecipeError
from ksurgeon.recipes.after import BEGAN, MODEL, sha256_of
from ksurgeon.recipes.digest import digest_of
from ksurgeon.recipes.job import Job, carry_out
from ksurgeon.recipes.places import data_of
from ksurgeon.recipes.pool import _next, carry_out_all
from ksurgeon.recipes.schema import load_recipe
from ksurgeon.train.log import Listener
from tests.cli.conftest import LEAVE, run

__all__ = ["run"]

RECIPE = """
schema = 1
name = "tiny"
seeds = 2
prepare = "nets.py:prepare"
evaluate = "nets.py:evaluate"
model = { name = "nets.py:net", input_size = [16], options = { kind = "{kind}" } }

[quick]
seeds = 1
evaluate = "nets.py:evaluate_some"

[[train]]
kind = "train"
only = ["dense", "other"]
data = "nets.py:labelled"
steps = 3
batch = 8
lr = 0.01

[[train]]
kind = "distill"
only = ["distilled"]
data = "nets.py:labelled"
steps = 2
batch = 8
layerwise = 0
least_squares = false

[[variants]]
name = "dense"

[[variants]]
name = "other"

[[variants]]
name = "distilled"
after = "dense"
rule = "linear"
"""
NETS = """
import torch
from torch import nn


def prepare(folder):
    return {"kind": "plain"}


def net(kind):
    assert kind == "plain"
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


def labelled():
    values = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    return [(value, int(value[0] > 0)) for value in values]


def evaluate(model, places):
    return {"places": len(places), "how": "all of them"}


def evaluate_some(model, places):
    return {"places": len(places), "how": "some"}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def loaded(folder, *changes):
    text = RECIPE
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (folder / "tiny.toml").write_text(text)
    return load_recipe(folder / "tiny.toml")


def jobs(folder, recipe, seed=0):
    recipe = recipe.model_copy(update={"seed": seed})
    return {
        variant.name: Job(
            recipe=recipe,
            variant=variant,
            place=folder / variant.name / f"seed-{seed}",
            places={"kind": "plain"},
            resume=False,
            device="cpu",
            options={},
        )
        for variant in recipe.variants
    }


def test_a_variant_begins_with_what_another_has_learned(folder, monkeypatch):
    given = []

    def noted(student, teacher, data, **options):
        from ksurgeon.train.distill import distill

        given.append((student, {name: tensor.clone() for name, tensor in teacher.state_dict().items()}))
        return distill(student, teacher, data, **options)

    monkeypatch.setattr("ksurgeon.recipes.job.distill", noted)
    each = jobs(folder, loaded(folder))
    dense = carry_out(each["dense"], Listener())
    assert carry_out(each["distilled"], Listener())["training"][0]["kind"] == "distill"
    trained = load_file(folder / "dense" / "seed-0" / "model.safetensors")
    (student, teacher), *_ = given
    assert teacher.keys() == trained.keys()
    assert all(torch.equal(teacher[name], trained[name]) for name in trained)
    assert type(student[0]).__name__ == "KLinear" and dense["parameters"] == 16 * 17 + 2 * 17
    assert not (folder / "other").exists(), "nothing comes after it"


def test_data_that_the_teacher_makes(run, folder):
    """They are made when it has learned, and the check before does not make them."""
    (folder / "nets.py").write_text(
        NETS
        + """

def labelled_by(places, teacher):
    assert places["kind"] == "plain"
    torch.save(teacher.state_dict(), "teacher.pt")
    values = [value for value, _ in labelled()]
    return [(value, int(teacher(value[None]).argmax())) for value in values]
"""
    )
    distilled = 'only = ["distilled"]\ndata = "nets.py:labelled'
    (folder / "tiny.toml").write_text(RECIPE.replace(f'{distilled}"', f'{distilled}_by"'))
    done = run("run", "tiny.toml", LEAVE, "--yes", "--device", "cpu", "--jobs", 1, "--seeds", 1)
    assert done.status == 0, done.err
    asked = torch.load(folder / "teacher.pt")
    trained = load_file(folder / "runs" / "tiny" / "dense" / "seed-0" / "model.safetensors")
    assert all(torch.equal(asked[name], trained[name]) for name in trained)


def test_surgery_is_done_on_what_was_learned(folder):
    """With an exact rule and no step, the student is the trained model."""
    recipe = loaded(
        folder,
        (
            'rule = "linear"',
            '[[variants.replace]]\nfind = "linear"\nwith = { structure = "dense" }\nstart = "exact"',
        ),
        ("steps = 2", "steps = 1\nlr = 1e-12"),
    )
    each = jobs(folder, recipe)
    carry_out(each["dense"], Listener())
    carry_out(each["distilled"], Listener())
    trained = load_file(folder / "dense" / "seed-0" / "model.safetensors")
    student = load_file(folder / "distilled" / "seed-0" / "model.safetensors")
    factors = {tuple(t.shape[2:]): t[0, 0] for name, t in student.items() if "factors" in name}
    for name in ("0.weight", "2.weight"):
        assert (factors[tuple(trained[name].shape)] - trained[name]).abs().max() < 1e-5


def test_functions_with_further_parameters(folder):
    """Only one called ``teacher`` is given the teacher, and asked for where there is none it is an error."""
    (folder / "nets.py").write_text(
        NETS
        + """

def few(places, limit=5):
    return labelled()[:limit]


def taught(places, teacher):
    return labelled()
"""
    )
    recipe = loaded(folder)
    assert len(data_of(recipe, "nets.py:few", {"kind": "plain"}, torch.nn.Identity())) == 5
    assert len(data_of(recipe, "nets.py:taught", {}, torch.nn.Identity())) == 64
    with pytest.raises(RecipeError, match="takes a teacher; only data"):
        data_of(recipe, "nets.py:taught", {})


def test_what_is_done_anew(run, folder):
    """A variant begins with the model that stands in the same results, whatever is done again, and how."""
    command = ("run", "tiny.toml", LEAVE, "--yes", "--device", "cpu", "--jobs", 1, "--seeds", 1)
    (folder / "tiny.toml").write_text(RECIPE)
    assert run(*command).status == 0
    file = folder / "runs" / "tiny" / "results.json"
    model = folder / "runs" / "tiny" / "dense" / "seed-0" / "model.safetensors"

    def told():
        of = json.loads(file.read_text())["variants"]
        return of["dense"]["seeds"]["0"][MODEL], of["distilled"]["seeds"]["0"][BEGAN]

    first = told()
    assert first[0] == first[1] == sha256_of(model)
    # The model is gone, and all is done: nothing is to be done. The variant anew: its model is trained again.
    model.unlink()
    assert run(*command, "--resume").status == 0 and not model.exists()
    results = json.loads(file.read_text())
    del results["variants"]["distilled"]["seeds"]["0"]
    file.write_text(json.dumps(results))
    refused = run(*command, "--resume", "--only", "distilled")
    assert refused.status == 1 and "do that variant too" in " ".join(refused.err.split())
    assert "dense" in json.loads(file.read_text())["variants"], "nothing was lost"
    assert run(*command, "--resume").status == 0
    assert told()[0] == told()[1] == sha256_of(model)
    # A model of other results, or one that was changed, is none to begin with.
    refused = run(*command, "--only", "distilled")
    assert refused.status == 1 and "the one of these results is not in" in " ".join(refused.err.split())
    assert "dense" in json.loads(file.read_text())["variants"]
    results = json.loads(file.read_text())
    results["variants"]["dense"]["seeds"]["0"][MODEL] = "another"
    file.write_text(json.dumps(results))
    assert run(*command, "--resume").status == 0
    assert told()[0] == told()[1] == sha256_of(model)
    # A changed recipe of the model is one of another variant.
    (folder / "tiny.toml").write_text(RECIPE.replace("lr = 0.01", "lr = 0.02"))
    refused = run(*command, "--resume", "--only", "distilled")
    assert refused.status == 1 and "results of another variant dense" in " ".join(refused.err.split())


def test_what_follows_a_failure_is_not_begun(folder, monkeypatch):
    recipe = loaded(folder)
    work = [job for name, job in jobs(folder, recipe).items() if name != "other"]
    begun, ends = [], {}

    class Worker:
        def __init__(self, one_thread):
            self.connection, self.process = object(), SimpleNamespace(terminate=lambda: None)

        def begin(self, job, told):
            begun.append(job.variant.name)
            self.job, self.listener = job, told.job(job.name)

        def hear(self):
            return None, "out of memory"

        def end(self):
            pass

    monkeypatch.setattr("ksurgeon.recipes.pool._Worker", Worker)
    monkeypatch.setattr("ksurgeon.recipes.pool.wait", list)
    carry_out_all(work, 2, Listener(), lambda job, done, why: ends.update({job.variant.name: (done, why)}))
    assert begun == ["dense"]
    assert ends["distilled"] == (None, "dense, seed 0, with whose model it begins, failed")


def test_a_quick_run_changes_no_digest(folder):
    recipes = (loaded(folder), loaded(folder, ('evaluate = "nets.py:evaluate_some"\n', "")))
    assert len({digest_of(recipe, recipe.variants[0], {}) for recipe in recipes}) == 1


def test_a_model_that_is_not_there(folder):
    each = jobs(folder, loaded(folder))
    with pytest.raises(Exception, match=r"dense/seed-0/model\.safetensors: no such file"):
        carry_out(each["distilled"], Listener())


def test_nothing_begins_with_the_model_of_an_earlier_run(run, folder, monkeypatch):
    """Though its file is still there when the training that would replace it fails."""
    (folder / "tiny.toml").write_text(RECIPE)
    command = ("run", "tiny.toml", LEAVE, "--yes", "--device", "cpu", "--jobs", 1, "--seeds", 1)
    assert run(*command).status == 0
    (folder / "nets.py").write_text(
        NETS.replace("def net(kind):", "def net(kind):\n    import fail_in_workers")
    )
    (folder / "fail_in_workers.py").write_text(
        "import multiprocessing\n\nif multiprocessing.parent_process():\n    raise RuntimeError('no')\n"
    )
    failed = run(*command)
    told = " ".join(failed.err.split())
    assert failed.status == 1 and "dense, seed 0, with whose model it begins, failed" in told
    results = json.loads((folder / "runs" / "tiny" / "results.json").read_text())
    assert not results["variants"]["distilled"]["seeds"]
    refused = run(*command, "--resume", "--only", "distilled")
    assert refused.status == 1 and "do that variant too" in " ".join(refused.err.split())


def test_a_job_waits_for_what_it_begins_with(folder):
    recipe = loaded(folder)
    dense, other, distilled = jobs(folder, recipe).values()
    second = jobs(folder, recipe, seed=1)["distilled"]

    class Busy:
        def __init__(self, job):
            self.job = job

    assert _next([dense, other, distilled], []) is dense
    assert _next([distilled, other], [Busy(dense)]) is other
    assert _next([distilled], [Busy(dense)]) is None
    assert _next([distilled, second], [Busy(dense)]) is second, "that of another seed is not what it needs"
    assert _next([distilled], [Busy(other)]) is distilled
    assert _next([], []) is None


def test_what_the_other_one_is_counts_in_its_digest(folder):
    before = loaded(folder)
    after = loaded(folder, ('name = "dense"', 'name = "dense"\nsettings = { lr = 0.1 }'))
    for number, changed in ((0, True), (1, False), (2, True)):
        digests = [digest_of(recipe, recipe.variants[number], {}) for recipe in (before, after)]
        assert (digests[0] != digests[1]) == changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([('after = "dense"\n', "")], "there is no teacher, but for variants that come after another"),
        ([('only = ["distilled"]\n', "")], "there is no teacher, but for variants that come after another"),
        ([('after = "dense"', 'after = "nothing"')], "an earlier variant without conversion: dense, other"),
        ([('after = "dense"', 'after = "distilled"')], "an earlier variant without conversion: dense, other"),
        ([('name = "dense"', 'name = "dense"\nrule = "linear"')], "without conversion: other"),
        ([('rule = "linear"', "options = { kind = 'x' }")], "leave model and options out"),
        ([('kind = "train"', 'kind = "distill"')], 'has after = "dense", which needs kind = "train"'),
    ],
)
def test_variants_that_cannot_come_after(folder, changes, message):
    with pytest.raises(RecipeError, match=message):
        loaded(folder, *changes)


def test_from_the_command_line(run, folder):
    (folder / "tiny.toml").write_text(RECIPE)
    command = ("run", "tiny.toml", LEAVE, "--yes", "--device", "cpu", "--jobs", 1)
    refused = run(*command, "--only", "distilled")
    assert refused.status == 1 and "do that variant too (--only dense)" in " ".join(refused.err.split())
    done = run(*command)
    assert done.status == 0, done.err
    assert "how: all of them" in done.out + done.err
    results = json.loads((folder / "runs" / "tiny" / "results.json").read_text())
    for variant in results["variants"].values():
        assert list(variant["seeds"]) == ["0", "1"]
        assert all(one["about"] == {"how": "all of them"} for one in variant["seeds"].values())
    assert results["statistics"]["distilled"]["places"]["mean"] == 1
    quick = run(*command, "--quick")
    assert quick.status == 0, quick.err
    assert "how: some" in quick.out + quick.err
