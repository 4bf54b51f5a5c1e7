"""Bad input: one clear message, a status that is not 0, no traceback, nothing written."""
# ruff: noqa: E501 -- a table of cases reads best with one case a line

import json

import pytest
import torch

import ksurgeon
from tests.cli.conftest import MODEL, SIZE

TYPO = """
schema = 1
name = "mine"
[[replace]]
find = "linear"
whit = { structure = "kaleidoscope" }
"""
USER = """
import torch
from torch import nn

def nan():
    model = nn.Sequential(nn.Linear(64, 64))
    nn.init.constant_(model[0].weight, float("nan"))
    return model

def no_module():
    return 3

def fails():
    raise RuntimeError("no weights on this disk")

def quantised():
    from tests.zoo import mlp
    model = mlp()
    model.up = torch.ao.nn.quantized.dynamic.Linear(64, 256)
    return model
"""

CASES = {
    "unknown model": (("convert", "resnet5O", "--rule", "shuffle"), 1, "resnet50"),
    "unknown torchvision model": (("convert", "torchvision:shufflenet_v2", "--rule", "shuffle"), 1, "shufflenet_v2_x"),
    "unknown module": (("find", "nowhere.module:function"), 1, "nowhere"),
    "unknown function": (("find", "user:nothing"), 1, "nothing"),
    "a function that fails": (("find", "user:fails"), 1, "no weights on this disk"),
    "a function that gives no model": (("find", "user:no_module"), 1, "int"),
    "unknown rule": (("convert", MODEL, "--rule", "shufle"), 1, "shuffle"),
    "missing rule file": (("convert", MODEL, "--rule", "no/such.toml"), 1, "no/such.toml"),
    "typo in a rule": (("convert", MODEL, "--rule", "mine.toml"), 1, "whit"),
    "a rule that matches nothing": (("convert", "tests.zoo:mlp", "--rule", "shuffle"), 3, '"linear"'),
    "a model without sites": (("convert", "tests.zoo:nothing", "--rule", "linear", "--input-size", "3x8x8"), 3, "no linear"),
    "inputs of a wrong shape": (("convert", MODEL, "--rule", "shuffle", "--input-size", "4x32x32"), 1, "does not run"),
    "a size that is none": (("convert", MODEL, "--rule", "shuffle", "--input-size", "large"), 1, "large"),
    "NaN weights": (("convert", "user:nan", "--rule", "linear"), 1, "NaN"),
    "a folder with something else": (("convert", MODEL, "--rule", "shuffle", "-o", "full"), 1, "thesis.tex"),
    "no such folder to show": (("show", "nowhere"), 1, "nowhere"),
    "a folder that is no conversion": (("show", "full"), 1, "ksurgeon.json"),
    "damaged record": (("show", "damaged"), 1, "not valid JSON"),
    "damaged tensors": (("revert", "torn", "--trust-remote-code"), 1, "damaged"),
    "another architecture": (("revert", "other", "--trust-remote-code"), 1, "another architecture"),
    "no such device": (("find", "tests.zoo:mlp", "--device", "warp"), 1, "warp"),
    "missing weights file": (("convert", MODEL, "--rule", "shuffle", "--weights", "no.safetensors"), 1, "no.safetensors"),
    "an unknown option": (("convert", MODEL, "--rule", "shuffle", "--colour"), 2, "colour"),
    "no rule": (("convert", MODEL), 2, "rule"),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from tests import zoo

    model = ksurgeon.replace_modules(
        zoo.shufflenet_v1_g4(),
        "shuffle",
        zoo.example("shufflenet_v1_g4"),
        source="tests.zoo:shufflenet_v1_g4",
    )
    return ksurgeon.save(model, tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def prepared(tmp_path, saved):
    record, tensors = (saved / "ksurgeon.json").read_text(), (saved / "model.safetensors").read_bytes()
    files = {
        "mine.toml": TYPO,
        "user.py": USER,
        "full/thesis.tex": "mine",
        "damaged/ksurgeon.json": record[:100],
        "damaged/model.safetensors": tensors,
        "torn/ksurgeon.json": record,
        "torn/model.safetensors": tensors[: len(tensors) // 2],
        "other/ksurgeon.json": record.replace("zoo:shufflenet_v1_g4", "zoo:shufflenet_v1_g8"),
        "other/model.safetensors": tensors,
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def everything_in(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(run, prepared, case):
    arguments, status, message = CASES[case]
    if MODEL in arguments and "--input-size" not in arguments and arguments[0] == "convert":
        arguments = (*arguments, *SIZE)
    before = everything_in(prepared)
    done = run(*arguments)
    assert done.status == status, done.err
    assert message in done.err.replace("\n", " ")
    assert "Traceback" not in done.err + done.out
    assert everything_in(prepared) == before


def test_debug_shows_the_traceback(run, prepared):
    done = run("convert", "tests.zoo:mlp", "--rule", "nothing", "--debug")
    assert done.status == 1 and "Traceback" in done.err


def test_a_quantised_layer_is_left_alone_with_the_reason(run, prepared):
    done = run("convert", "user:quantised", "--rule", "linear", "--input-size", "64", "--dry-run", "--json")
    decisions = {d["path"]: d for d in json.loads(done.out)["decisions"]}
    assert decisions["up"]["action"] == "leave" and "quantised" in decisions["up"]["reason"]
    assert decisions["down"]["action"] == "replace"


def test_an_interrupt_writes_nothing(run, prepared, monkeypatch):
    from ksurgeon.kmatrix import shuffle

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shuffle, "permutation_", interrupt)
    before = everything_in(prepared)
    done = run("convert", MODEL, "--rule", "shuffle", "-o", "new", *SIZE)
    assert done.status == 130 and "nothing was written" in done.err
    assert everything_in(prepared) == before


def test_a_full_disk_leaves_nothing(run, prepared, monkeypatch):
    from ksurgeon.surgery import storage

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    before = everything_in(prepared)
    done = run("convert", MODEL, "--rule", "shuffle", "-o", "new", *SIZE)
    assert done.status == 1 and "no space is left" in " ".join(done.err.split())
    assert everything_in(prepared) == before


def test_an_error_nobody_expected_asks_for_a_report(run, monkeypatch):
    from ksurgeon.cli import doctor

    def fail(json):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(doctor, "run", fail)
    done = run("doctor")
    assert done.status == 70 and "--debug" in done.err and "Traceback" not in done.err


def _too_large():
    torch.empty(2**60, dtype=torch.uint8)


def _no_memory():
    raise MemoryError


@pytest.mark.parametrize("fails", [_too_large, _no_memory])
def test_memory_that_runs_out_is_told_as_such(fails, run, monkeypatch):
    from ksurgeon.cli import doctor

    monkeypatch.setattr(doctor, "run", lambda json: fails())
    done = run("doctor")
    assert done.status == 1 and "out of memory" in done.err and "ulimit" in done.err
    assert "report" not in done.err


def test_random_weights_cannot_be_missed(run, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = run(
        "convert", "torchvision:shufflenet_v2_x0_5", "--rule", "shuffle", "--input-size", "32", "-o", "out"
    )
    assert done.status == 0, done.err
    record = json.loads(run("show", "out", "--json").out)
    if record["source"]["weights"] == "random":  # a machine with the weights in its cache uses them
        assert "RANDOM WEIGHTS" in done.err and "RANDOM WEIGHTS" in done.out
        assert any("RANDOM" in warning for warning in record["warnings"])
    assert torch.isfinite(ksurgeon.load("out", trust_remote_code=True)(torch.randn(1, 3, 32, 32))).all()
