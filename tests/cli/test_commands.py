"""The commands end to end, on small models."""

import json
import os
import subprocess
import sys
from importlib import import_module
from typing import get_args, get_type_hints

import pytest
import torch

import ksurgeon
from ksurgeon.cli.app import _HOMES
from ksurgeon.kernels import cpu
from ksurgeon.kernels.cache import Cache
from ksurgeon.rules.load import builtin_rules
from tests.cli.conftest import LEAVE, MODEL, SIZE
from tests.fields import TRUTH
from tests.near import near


def test_convert_show_revert(run, tmp_path):
    done = run("convert", MODEL, "--rule", "shuffle", "-o", "out", *SIZE)
    assert done.status == 0, done.err
    assert "channel_shuffle" in done.out and "units.3:view_1" in done.out and "exact" in done.out
    assert "latency" in done.out and "Written to out" in done.out
    assert "fitting 4/4" in done.err
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"ksurgeon.json", "model.safetensors"}
    shown = run("show", "out")
    assert shown.status == 0 and "units.3:view_1" in shown.out and "latency" in shown.out
    reverted = run("revert", "out", LEAVE)
    assert reverted.status == 0 and "4 sites reverted" in reverted.out
    x = torch.randn(1, 3, 32, 32)
    dense, converted = (ksurgeon.load(name, trust_remote_code=True) for name in ("out-dense", "out"))
    assert near(dense(x), converted(x))


def test_batch_norms_are_folded_and_come_back(run, tmp_path):
    done = run("convert", MODEL, "--rule", "shuffle", "--fold", "-o", "out", *SIZE)
    assert done.status == 0, done.err
    assert "batch norms folded into the layers before them" in " ".join(done.out.split())
    folded = json.loads((tmp_path / "out" / "ksurgeon.json").read_text())["folded"]
    assert folded and {"layer", "norm", "had_bias"} == set(folded[0])
    assert run("revert", "out", LEAVE).status == 0
    dense, converted = (ksurgeon.load(name, trust_remote_code=True) for name in ("out-dense", "out"))
    x = torch.randn(1, 3, 32, 32)
    assert near(dense(x), converted(x))
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in dense.modules())
    assert norms == len(folded)


INSERT = """
name = "both"
[[insert]]
before = ['re:units\\..*\\.expand']
dim = 1
with = { structure = "kaleidoscope" }
[[insert]]
after = ['fc', 'units']
dim = -1
with = { structure = "dense" }
start = "orthogonal"
"""


def test_insertions_from_end_to_end(run, tmp_path):
    (tmp_path / "both.toml").write_text(INSERT)
    found = run("find", MODEL, "--insertions", *SIZE)
    assert found.status == 0 and "units.0.expand" in found.out and "1: 32, 2: 8, 3: 8" in found.out
    sites = json.loads(run("find", MODEL, "--insertions", "--json", *SIZE).out)["sites"]
    assert {site["kind"] for site in sites} == {"insertion"}
    dry = run("convert", MODEL, "--rule", "both.toml", "--dry-run", *SIZE)
    assert dry.status == 0 and "insert: (BB*)^1" in dry.out and "units:after" in dry.out
    done = run("convert", MODEL, "--rule", "both.toml", "-o", "out", *SIZE)
    assert done.status == 0, done.err
    assert "part 1, insertion before, dim 1 → kaleidoscope, start identity: inserted at 4 sites" in done.out
    assert "insertion left: a Sequential calls all" in done.out and "train before use" in done.out
    shown = run("show", "out")
    assert "units.3.expand:before.dim1" in shown.out and "fc:after.dim1" in shown.out
    exported = run("export", "out", "--to", "onnx", "-o", "out.onnx", LEAVE)
    assert exported.status == 0, exported.err
    reverted = run("revert", "out", LEAVE)
    assert reverted.status == 0 and "1 trained map became" in " ".join(reverted.out.split())
    x = torch.randn(1, 3, 32, 32)
    dense, converted = (ksurgeon.load(name, trust_remote_code=True) for name in ("out-dense", "out"))
    assert near(dense(x), converted(x)) and isinstance(dense.fc.kafter0, torch.nn.Linear)


GEOMETRY = """
name = "arranged"
[[insert]]
before = ["1"]
dim = 1
with = { structure = "kaleidoscope" }
start = "geometry"
grid = [8, 8]
"""


def test_an_insertion_from_geometry(run, tmp_path):
    (tmp_path / "arranged.toml").write_text(GEOMETRY)
    command = "convert", "tests.fields:classifier", "--rule", "arranged.toml", "--input-size", "1x8x8"
    dry = run(*command, "--dry-run")
    assert dry.status == 0 and "start geometry on 8 × 8" in " ".join(dry.out.split())
    refused = run(*command, "-o", "out")
    assert refused.status != 0 and "needs data" in refused.err and not (tmp_path / "out").exists()
    done = run(*command, "-o", "out", "--data", "tests.fields:batches", "--examples", "2000")
    assert done.status == 0, done.err
    assert "start geometry: inserted at 1 site" in done.out and "train before use" in done.out
    (operation,) = json.loads(run("show", "out", "--json").out)["operations"]
    assert ksurgeon.neighbour_share(operation["permutation"], TRUTH, (8, 8)) >= 0.95
    assert run("revert", "out", LEAVE).status == 0


def test_the_default_folder_is_named_after_model_and_rule(run, tmp_path):
    assert run("convert", MODEL, "--rule", "shuffle", *SIZE).status == 0
    assert (tmp_path / "converted" / "tests.zoo-shufflenet_v1_g4-shuffle" / "ksurgeon.json").exists()


def test_convert_fits_and_says_so(run):
    done = run("convert", "tests.zoo:mlp", "--rule", "linear", "-o", "out")
    assert done.status == 0, done.err
    assert "distil before use" in done.out and "weight error" in done.out


def test_json(run):
    done = run("convert", MODEL, "--rule", "shuffle", "-o", "out", "--json", *SIZE)
    report = json.loads(done.out)
    assert report["folder"] == "out" and len(report["operations"]) == 4
    assert report["outcome"]["latency"][0] > 0 and report["outcome"]["multiplications"][0] > 0
    assert len(json.loads(run("show", "out", "--json").out)["operations"]) == 4
    assert json.loads(run("revert", "out", LEAVE, "--json").out)["reverted"] == 4
    sites = json.loads(run("find", MODEL, "--json", *SIZE).out)["sites"]
    assert sum(site["kind"] == "channel_shuffle" for site in sites) == 4
    plan = json.loads(run("convert", MODEL, "--rule", "shuffle", "--dry-run", "--json", *SIZE).out)
    assert sum(decision["action"] == "replace" for decision in plan["decisions"]) == 4


def test_a_dry_run_writes_nothing(run, tmp_path):
    done = run("convert", MODEL, "--rule", "shuffle", "--dry-run", *SIZE)
    assert done.status == 0 and "replace: (BB*)^1" in done.out
    assert list(tmp_path.iterdir()) == []


def test_find(run):
    done = run("find", MODEL, *SIZE)
    assert done.status == 0
    assert "4 channel_shuffle" in done.out and "units.0.compress" in done.out


def test_an_earlier_conversion_is_replaced_only_with_yes(run):
    command = ("convert", MODEL, "--rule", "shuffle", "-o", "out", *SIZE)
    assert run(*command).status == 0
    refused = run(*command)
    assert refused.status == 1 and "--yes" in refused.err
    assert run(*command, "--yes").status == 0


def test_diff(run):
    assert run("convert", MODEL, "--rule", "shuffle", "-o", "out", *SIZE).status == 0
    assert run("revert", "out", LEAVE, "-o", "dense").status == 0
    told = json.loads(run("diff", LEAVE, "dense", "out", *SIZE, "--json").out)
    assert told["outputs"][0]["relative"] < 1e-5 and told["decided_alike"] == 1
    shown = run("diff", LEAVE, "dense", "out", *SIZE)
    assert shown.status == 0 and "parameters" in shown.out and "relative difference" in shown.out
    assert run("diff", LEAVE, "dense", "tests.zoo:mlp").status == 1


def test_export(run, tmp_path):
    assert run("convert", "tests.zoo:mlp", "--rule", "linear", "-o", "out").status == 0
    done = run("export", "out", LEAVE, "--to", "pt2", "-o", "mlp.pt2")
    assert done.status == 0, done.err
    assert "converted / dense" in done.out and "the batch may have any size" in done.out
    assert {p.name for p in tmp_path.iterdir()} == {"out", "mlp.pt2"}
    refused = run("export", "out", LEAVE, "--to", "pt2", "-o", "mlp.pt2")
    assert refused.status == 1 and "--yes" in refused.err
    told = json.loads(
        run("export", "out", LEAVE, "--to", "pt2", "-o", "mlp.pt2", "--yes", "--no-compare", "--json").out
    )
    assert told["open"] == "batch" and told["largest_error"] < 1e-4
    assert run("export", "out", LEAVE, "--to", "tflite").status == 1


def test_rules(run):
    listed = run("rules")
    assert all(name in listed.out for name in builtin_rules())
    assert {"decoder", "filterbank", "linear", "permutation", "shuffle", "transform"} <= set(builtin_rules())
    shown = run("rules", "show", "shuffle")
    assert "[[replace]]" in shown.out and 'find = "channel_shuffle"' in shown.out


def test_doctor(run):
    done = run("doctor")
    assert done.status == 0 and torch.__version__ in done.out and "reference" in done.out
    assert json.loads(run("doctor", "--json").out)["packages"]["torch"]


def test_doctor_tells_of_a_torchaudio_that_refuses_this_torch(run, tmp_path, monkeypatch):
    for name, text in {
        "torchaudio/__init__.py": "raise RuntimeError('built for [another] CUDA')",
        "torchaudio-9.8.7.dist-info/METADATA": "Metadata-Version: 2.1\nName: torchaudio\nVersion: 9.8.7\n",
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    told = " ".join(run("doctor").out.split())
    assert "torchaudio 9.8.7 cannot be imported: built for [another] CUDA" in told


@pytest.mark.skipif(not cpu.is_available(), reason="no compiled kernels")
def test_doctor_shows_what_is_tuned(run, monkeypatch):
    from ksurgeon.kernels.cpu.tune import tuner

    assert json.loads(run("doctor", "--json").out)["tuning"]["on"] is False
    monkeypatch.setattr(tuner, "_cache", Cache("cpu", "a test"))
    monkeypatch.setattr(Cache, "_write", lambda self, choices: None)
    tuner.cache.put("float32 rows", [1, 2])
    monkeypatch.delenv("KSURGEON_TUNE")
    tuning = json.loads(run("doctor", "--json").out)["tuning"]
    assert tuning == {"on": True, "cache": str(tuner.cache.path), "measured": {"float32 rows": [1, 2]}}
    assert "1 class of products" in " ".join(run("doctor").out.split())


def test_a_converted_folder_is_a_model_too(run):
    assert run("convert", MODEL, "--rule", "shuffle", "-o", "first", *SIZE).status == 0
    found = run("find", "first", LEAVE, *SIZE)
    assert found.status == 0 and "channel_shuffle" not in found.out and "pointwise_conv" in found.out
    again = run("convert", "first", LEAVE, "--rule", "linear", "-o", "second", *SIZE)
    assert again.status == 3 and "pointwise" in again.err
    again = run("convert", "first", LEAVE, "--rule", "pointwise", "-o", "second", *SIZE)
    assert again.status == 0, again.err
    assert {type(m).__name__ for m in ksurgeon.load("second", trust_remote_code=True).modules()} >= {
        "KChannelShuffle",
        "KPointwiseConv",
    }
    assert run("convert", "first", LEAVE, "--rule", "linear", "--weights", "random").status == 1


def test_seeds_and_weights(run):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = run("convert", "torchvision:shufflenet_v2_x0_5", "--rule", "shuffle", "--weights", "random",
                   "--input-size", "32", "--seed", seed, "-o", folder)  # fmt: skip
        assert done.status == 0, done.err
    states = [ksurgeon.load(folder, trust_remote_code=True).state_dict() for folder in "abc"]
    assert all(torch.equal(t, states[1][n]) for n, t in states[0].items())
    assert not torch.equal(states[0]["conv1.0.weight"], states[2]["conv1.0.weight"])


@pytest.mark.parametrize("entry", [["-m", "ksurgeon"], ["cli.py"]], ids=" ".join)
def test_help_needs_no_torch(entry):
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    script = [sys.executable, "-X", "importtime", *entry, "--help"]
    done = subprocess.run(script, cwd=top, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "convert" in done.stdout and "ksurgeon.cli.app" in imported
    assert not imported & {"torch", "timm", "transformers", "torchvision", "pydantic", "numpy"}


@pytest.mark.parametrize("asked", _HOMES, ids=lambda asked: asked.__name__)
def test_every_command_finds_its_work(asked):
    run = import_module(f"ksurgeon.cli.{_HOMES[asked]}").run
    taken = get_type_hints(run)["asked"]
    assert asked in (taken, *get_args(taken))
