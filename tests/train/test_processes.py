"""Several processes through ``accelerate launch``, and precision: what runs on a CPU, what is refused."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import KLinear
from ksurgeon.errors import TrainingError, TrainingStopped
from ksurgeon.train.loop import Loop
from ksurgeon.train.processes import Stop
from ksurgeon.train.settings import make_settings
from tests.cli.conftest import LEAVE
from tests.train.conftest import pair, pictures, vectors

FAST = {"batch": 16, "steps": 8, "device": "cpu", "evaluate": 2, "layerwise": 3}
DATA = "from tests.train.conftest import vectors\n"
SETTINGS = (
    "--data", "mine.py:vectors", "--batch", "8", "--steps", "20", "--device", "cpu", "--gradual", "2",
    "--set", "layerwise=3", "--set", "evaluate=1",
)  # fmt: skip


def _ksurgeon(folder, *arguments, launcher=()):
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-m", *launcher, *(("-m",) if launcher else ()), "ksurgeon", *arguments],
        cwd=folder,
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
    )


LAUNCH = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")


@pytest.mark.timeout(900)
def test_two_launched_processes_train_as_one(tmp_path, monkeypatch):
    student, _ = pair()
    ksurgeon.save(student, tmp_path / "small")
    (tmp_path / "mine.py").write_text(DATA)
    ran = _ksurgeon(tmp_path, "distill", "small", LEAVE, *SETTINGS, "-o", "two", "--json", launcher=LAUNCH)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)  # of one process: two would be no JSON
    assert len(told["stages"]) == 2
    for text in ("opening small and its teacher", "group 2 of 2: 1 sites (", "group 2 of 2: error"):
        assert ran.stderr.count(text) == 1
    events = [json.loads(line) for line in (tmp_path / "two.training" / "log.jsonl").open()]
    assert sum(event["event"] == "step" for event in events) == 20
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    student, teacher = pair()
    one = ksurgeon.distill_gradually(
        student,
        teacher,
        "mine.py:vectors",
        groups=2,
        batch=8,
        steps=20,
        device="cpu",
        layerwise=3,
        evaluate=1,
    )
    two = ksurgeon.load(tmp_path / "two", trust_remote_code=True)
    for path, mine in one.model.named_modules():  # products: rounding may balance other factors of the same
        if isinstance(mine, (KLinear, nn.Linear)):
            its = two.get_submodule(path)
            for got, want in ((its.weight, mine.weight), (its.bias, mine.bias)):
                torch.testing.assert_close(got, want, atol=1e-5, rtol=0, msg=path)


@pytest.mark.parametrize("wishes", [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)])
def test_a_signal_to_one_process_stops_all(wishes):
    """Every process asks the others once a step, whatever it knows itself: else they wait for each other."""
    mine, its = wishes
    asked = []

    class Two:
        device = torch.device("cpu")

        def reduce(self, values):
            asked.append(values.tolist())
            return values + torch.tensor([0.0, its])

    loop = object.__new__(Loop)
    loop.state = SimpleNamespace(clock=SimpleNamespace(elapsed=0.0), step=3)
    loop.settings, loop.checkpoints, loop.accelerator = make_settings(), None, Two()
    loop._saved, loop.stop = 0.0, Stop()
    loop.stop.signal = 15 if mine else None
    with pytest.raises(TrainingStopped, match="after step 3") if any(wishes) else nullcontext():
        loop._keep()
    assert asked == [[0.0, mine]]


def test_sharding_is_refused(monkeypatch):
    """On a CPU accelerate would leave it out without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    student, teacher = pair()
    with pytest.raises(TrainingError, match=r"sharded.*FSDP.*cannot be.*--multi_gpu in place of --use_fsdp"):
        ksurgeon.distill(student, teacher, vectors(), **FAST)


def test_half_precision_is_refused_on_a_cpu():
    student, teacher = pair()
    with pytest.raises(TrainingError, match=r"fp16 needs a GPU.*bf16"):
        ksurgeon.distill(student, teacher, vectors(), precision="fp16", **FAST)


@pytest.mark.parametrize(("model", "rule", "lr"), [("mlp", "linear", 2e-3), ("convnet", "pointwise", 3e-4)])
def test_bfloat16_trains_on_a_cpu(model, rule, lr, heard):
    student, teacher = pair(model, rule)
    data = vectors() if model == "mlp" else pictures()
    seen = set()
    head = student.head if model == "mlp" else student.fc
    head.register_forward_hook(lambda *args: seen.add(args[-1].dtype))
    options = {**FAST, "steps": 16}
    trained = ksurgeon.distill(student, teacher, data, precision="bf16", lr=lr, listener=heard, **options)
    assert torch.bfloat16 in seen
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    values = [value for e in trained.history for value in (e.loss, *e.student.values())]
    assert torch.tensor(values + [step.loss for step in heard.steps]).isfinite().all()
    assert trained.best.student["error"] < trained.history[0].student["error"]
