"""Checkpoints: resumption to the same result, signals, kills, full disks."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import ksurgeon
from ksurgeon.errors import FolderError, TrainingError, TrainingStopped
from ksurgeon.train import checkpoint
from ksurgeon.train.checkpoint import Checkpoints
from ksurgeon.train.log import Listener
from tests.train.conftest import pair, vectors

RUN = {"batch": 8, "steps": 24, "device": "cpu", "evaluate": 4, "layerwise": 5, "balance_factors": 7}


class Interrupts(Listener):
    """Sends a signal after some steps."""

    def __init__(self, after, number=signal.SIGTERM):
        self.after, self.number = after, number

    def step(self, step):
        if step.step == self.after:
            os.kill(os.getpid(), self.number)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("options", [{}, {"ema": 0, "micro_batch": 4}, {"dropout": True}])
def test_a_resumed_training_ends_the_same(options, tmp_path, heard):
    through, teacher = pair()
    whole = ksurgeon.distill(through, teacher, vectors(), **RUN, **options)
    stopped, teacher = pair()
    with pytest.raises(TrainingStopped, match=r"after step 9.*--resume"):
        ksurgeon.distill(
            stopped, teacher, vectors(), folder=tmp_path, listener=Interrupts(9), **RUN, **options
        )
    fresh, teacher = pair()
    torch.manual_seed(123)
    resumed = ksurgeon.distill(
        fresh, teacher, vectors(), folder=tmp_path, resume=True, listener=heard, **RUN, **options
    )
    assert torch.equal(weights(fresh), weights(through))
    assert heard.steps[0].step == 10 and "going on after step 9" in heard.notes
    assert [e.loss for e in resumed.history] == [e.loss for e in whole.history]
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "step"] == list(range(1, 25))
    assert not (tmp_path / "checkpoints").exists()


def test_interrupt_is_like_a_termination(tmp_path):
    student, teacher = pair()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingStopped):
        ksurgeon.distill(
            student, teacher, vectors(), folder=tmp_path, listener=Interrupts(2, signal.SIGINT), **RUN
        )
    assert signal.getsignal(signal.SIGINT) is before
    assert [place.name for place in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"lr": 1e-3}, "another settings"), ({"data": vectors(40)}, "another data")],
)
def test_only_the_same_training_goes_on(change, message, tmp_path):
    student, teacher = pair()
    with pytest.raises(TrainingStopped):
        ksurgeon.distill(student, teacher, vectors(), folder=tmp_path, listener=Interrupts(1), **RUN)
    data = change.pop("data", vectors())
    with pytest.raises(TrainingError, match=message):
        ksurgeon.distill(student, teacher, data, folder=tmp_path, resume=True, **{**RUN, **change})


def test_resume_needs_a_folder_and_begins_anew_without_checkpoints(tmp_path, heard):
    student, teacher = pair()
    with pytest.raises(TrainingError, match="folder"):
        ksurgeon.distill(student, teacher, vectors(), resume=True, **RUN)
    settings = {**RUN, "steps": 2}
    ksurgeon.distill(student, teacher, vectors(), folder=tmp_path, resume=True, listener=heard, **settings)
    assert any("starting anew" in note for note in heard.notes)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path / "checkpoints")
    kept.save(1, {"a": torch.ones(3)}, {"step": 1})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    student, teacher = pair()
    with pytest.raises(FolderError, match="no space is left"):
        ksurgeon.distill(student, teacher, vectors(), folder=tmp_path, **RUN, checkpoint=1e-6)
    tensors, plain = kept.last()
    assert plain == {"step": 1} and torch.equal(tensors["a"], torch.ones(3))


def test_damaged_checkpoints_are_passed_over(tmp_path):
    kept = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        kept.save(step, {"a": torch.full((3,), float(step))}, {"step": step})
    assert sorted(place.name for place in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    (tmp_path / "step-00000003" / "state.safetensors").write_bytes(b"half")
    assert kept.last()[1] == {"step": 2}
    (tmp_path / "step-00000002" / "state.json").write_text("{")
    with pytest.raises(TrainingError, match="damaged"):
        kept.last()


WRITER = """
import sys, torch
from pathlib import Path
from ksurgeon.train.checkpoint import Checkpoints
kept, step = Checkpoints(Path(sys.argv[1])), 0
while True:
    step += 1
    kept.save(step, {"a": torch.full((200_000,), float(step))}, {"step": step})
    print(step, flush=True)
"""


def test_a_kill_in_the_middle_never_loses_the_last_checkpoint(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    for _ in range(5):
        last = int(process.stdout.readline())
    time.sleep(0.0007)
    process.kill()
    process.wait()
    tensors, plain = Checkpoints(tmp_path).last()
    assert plain["step"] >= last and (tensors["a"] == plain["step"]).all()


PROCESS = """
import sys, torch
from safetensors.torch import save_file
import ksurgeon
from tests.train.conftest import pair, vectors
student, teacher = pair()
ksurgeon.distill(student, teacher, vectors(), batch=8, steps=20, device="cpu", evaluate=1, layerwise=3)
import os
if os.environ.get("RANK", "0") == "0":
    save_file({n: p.detach().contiguous() for n, p in student.named_parameters()}, sys.argv[1])
"""


def _processes(count, place, port):
    together = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(place)],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                **({**together, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}),
            },
        )
        for rank in range(count)
    ]


def test_two_processes_train_as_one(tmp_path):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for process in [*_processes(1, tmp_path / "one", 0), *_processes(2, tmp_path / "two", port)]:
        assert process.wait(200) == 0
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)
