"""``ksurgeon plan`` and ``ksurgeon convert --plan`` end to end."""

import json

import pytest
import torch

import ksurgeon

DATA = """
import torch

def batches(count=6, features=64):
    random = torch.Generator().manual_seed(0)
    basis = torch.randn(12, features, generator=random)
    for _ in range(count):
        yield torch.randn(8, 12, generator=random) @ basis

def narrow():
    return batches(features=63)

def nan():
    yield from batches(2)
    yield torch.full((8, 64), float("nan"))

def merit(model):
    return 1.0 - float(model(torch.ones(1, 64)).detach().norm())
"""
PLAN = ("plan", "tests.zoo:mlp", "--data", "mydata:batches", "--budget")


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    import sys

    (tmp_path / "mydata.py").write_text(DATA)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    sys.modules.pop("mydata", None)


def test_plan_edit_convert(run, tmp_path):
    planned = run(
        *PLAN, "params=0.5", "-o", "mine.toml", "--explain", "down", "--front", "--plot", "front.png"
    )
    assert planned.status == 0, planned.err
    for expected in (
        "Plan for params=0.5",
        "Other budgets",
        "← chosen",
        "optimal",
        "Written to mine.toml",
    ):
        assert expected in planned.out
    assert "predicting 1/3" in planned.err
    assert all((tmp_path / f).stat().st_size > 5000 for f in ("front.png", "front-sites.png"))
    shown = run("convert", "tests.zoo:mlp", "--plan", "mine.toml", "--dry-run")
    assert shown.status == 0 and "plan params=0.5" in shown.err
    done = run("convert", "tests.zoo:mlp", "--plan", "mine.toml", "--data", "mydata:batches", "-o", "out")
    assert done.status == 0, done.err
    model = ksurgeon.load("out", trust_remote_code=True)
    assert sum(p.numel() for p in model.parameters()) <= 0.5 * 33674
    assert model(torch.randn(2, 64)).shape == (2, 10)


def test_json(run):
    planned = json.loads(run(*PLAN, "error=0.1", "--json", "--metric", "mydata:merit").out)
    assert planned["gap"] < 1e-6 and planned["harm"] == "metric" and planned["decisions"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((*PLAN, "params=0.001"), "nearest budget is params="),
        ((*PLAN, "size=1"), "expected params=0.5"),
        (
            ("plan", "tests.zoo:mlp", "--budget", "params=0.5", "--data", "mydata:narrow"),
            "do not match the model",
        ),
        (("plan", "tests.zoo:mlp", "--budget", "params=0.5", "--data", "mydata:nan"), "NaN or Inf"),
        (("plan", "tests.zoo:mlp", "--budget", "params=0.5", "--data", "nowhere"), "no file or folder"),
        ((*PLAN, "params=0.5", "--plot", "front.docx"), ".png"),
        ((*PLAN, "params=0.5", "--explain", "dwn"), "the nearest are down"),
        ((*PLAN, "params=0.5", "--harm", "much"), "allowed: auto, kl, outputs"),
        (("convert", "tests.zoo:mlp", "--plan", "none.toml"), "no such plan"),
    ],
)
def test_what_is_refused_writes_nothing(run, tmp_path, arguments, expected):
    done = run(*arguments)
    assert done.status == 1 and expected in " ".join(done.err.split()) and "Traceback" not in done.err
    assert {p.name for p in tmp_path.iterdir()} <= {"mydata.py", "cache", "__pycache__"}


def test_a_rule_or_a_plan(run):
    assert run("convert", "tests.zoo:mlp").status == 2
    assert run("convert", "tests.zoo:mlp", "--rule", "linear", "--plan", "plan.toml").status == 2


def test_a_plan_that_cannot_be_written_is_shown(run, monkeypatch):
    from ksurgeon.cli import plan as planning

    def full(*_):
        raise ksurgeon.FolderError("plan.toml cannot be written: No space left on device")

    monkeypatch.setattr(planning, "write_plan", full)
    done = run(*PLAN, "params=0.9")
    assert done.status == 1 and "No space left" in done.err and "Plan for params=0.9" in done.out
