"""What a model takes where nothing but data, a size or a record tells it."""

import shlex

import pytest
import torch

import ksurgeon
from tests.cli.conftest import LEAVE

OWN = """
import torch
from torch import nn

class Patches(nn.Module):
    def __init__(self, channels=1):
        super().__init__()
        self.patch = nn.Conv2d(channels, 64, 4, 4)
        self.layer, self.head = nn.Linear(64, 64), nn.Linear(64, 10)
        self.position = nn.Parameter(torch.zeros(1, 49, 64))  # of images of 28 x 28 only

    def forward(self, x):
        return self.head(self.layer(self.patch(x).flatten(2).mT + self.position).mean(1))

class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(8, 64, batch_first=True), nn.Sequential()
        self.head.append(nn.Linear(64, 64))

    def forward(self, x):
        return self.head(self.cell(x)[0])

def patches():
    torch.manual_seed(0)
    return Patches()

def colours():
    torch.manual_seed(0)
    return Patches(3)

def images():
    return (torch.randn(16, 1, 28, 28) for _ in range(6))

def steps():
    torch.manual_seed(0)
    return Steps()

def series():
    return (torch.randn(16, 5, 8) for _ in range(6))
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    import sys

    (tmp_path / "own_inputs.py").write_text(OWN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    sys.modules.pop("own_inputs", None)


@pytest.mark.parametrize(("model", "data"), [("patches", "images"), ("steps", "series")])
def test_the_command_that_plan_prints_is_all_that_is_needed(run, model, data):
    planned = run(
        "plan", f"own_inputs:{model}", "--budget", "params=0.6", "--data", f"own_inputs:{data}",
        "--output", "a plan [1].toml", "--examples", "48", "--seed", "3",
    )  # fmt: skip
    assert planned.status == 0, planned.err
    command = shlex.split(planned.out.splitlines()[-1].partition("carry it out")[2])
    assert command[:2] == ["ksurgeon", "convert"] and {"--examples", "--seed"} < set(command)
    assert run(*command[1:], "--dry-run").status == 0
    done = run(*command[1:], "-o", "out")
    assert done.status == 0, done.err
    assert ksurgeon.load("out", trust_remote_code=True) is not None


def test_images_for_a_model_of_a_size_of_its_own(run, tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for number in range(8):
        noise = torch.randint(256, (28, 28, 3), generator=torch.Generator().manual_seed(number))
        Image.fromarray(noise.to(torch.uint8).numpy()).save(tmp_path / "images" / f"{number}.png")
    size = ("--input-size", "3x28x28")
    planned = run("plan", "own_inputs:colours", "--budget", "params=0.6", "--data", "images", *size)
    assert planned.status == 0, planned.err
    command = shlex.split(planned.out.splitlines()[-1].partition("carry it out")[2])
    assert command[-2:] == list(size)
    assert run(*command[1:], "-o", "out").status == 0


def test_the_input_size_is_kept_with_the_model(run, tmp_path):
    done = run("convert", "own_inputs:patches", "--rule", "linear", "--input-size", "28", "-o", "out")
    assert done.status == 0, done.err
    again = ("out", "own_inputs:patches")
    for command in (
        ("find", "out"), ("diff", *again), ("diff", *again[::-1]),
        ("export", "out", "--to", "pt2", "-o", "m.pt2"),
        ("convert", "out", "--rule", "low_rank", "--dry-run"),
    ):  # fmt: skip
        done = run(*command, LEAVE)
        assert done.status == 0 or "matched nothing" in done.err, (command, done.err)
        assert "does not run" not in done.err
    reverted = run("revert", "out", "-o", "dense", LEAVE)
    assert reverted.status == 0 and run("find", "dense", LEAVE).status == 0


def test_inputs_of_a_library_keep_their_values():
    """What a mask hides, and which tokens stand for something, random numbers would not tell."""
    from ksurgeon.models.inputs import inputs_for
    from ksurgeon.surgery.record import describe_inputs, inputs_from
    from ksurgeon.surgery.recorded import inputs_like
    from tests import zoo

    model = zoo.gpt2().eval()
    given = inputs_for(model, None, 7)
    found = inputs_like(model, None, describe_inputs(given))
    assert found.keys() == given.keys() and all(torch.equal(found[name], given[name]) for name in given)
    mask = {"x": torch.ones(2, 5, dtype=torch.long)}
    assert torch.equal(inputs_from(describe_inputs(mask))["x"], mask["x"])
