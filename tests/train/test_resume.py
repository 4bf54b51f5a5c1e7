"""Checkpoints: resumption to the same result, signals, kills, full disks."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon.errors import FolderError, TrainingError, TrainingStopped
from ksurgeon.train import checkpoint, loop, parameters
from ksurgeon.train.checkpoint import Checkpoints
from ksurgeon.train.log import Listener
from tests import zoo
from tests.train.conftest import pair, pictures, vectors

RUN = {"batch": 8, "steps": 24, "device": "cpu", "evaluate": 4, "layerwise": 5, "balance_factors": 7}
SGD = {"optimiser": "sgd", "lr": 1e-3, "ema": 0, "final": "last"}


class Interrupts(Listener):
    """Sends a signal after some steps."""

    def __init__(self, after, number=signal.SIGTERM):
        self.after, self.number = after, number

    def step(self, step):
        if step.step == self.after:
            os.kill(os.getpid(), self.number)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("options", [{}, {"ema": 0, "micro_batch": 4}, {"dropout": True}, SGD])
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
    assert heard.steps[0].step == 10 and "continuing after step 9" in heard.notes
    assert [e.loss for e in resumed.history] == [e.loss for e in whole.history]
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "step"] == list(range(1, 25))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_memory_formats_stay_what_they_were(layout, tmp_path):
    def made():
        student, teacher = pair("convnet", "pointwise")
        return student.to(memory_format=layout), teacher

    through, teacher = made()
    assert any(not p.is_contiguous() for p in through.parameters()) is (layout is torch.channels_last)
    ksurgeon.distill(through, teacher, pictures(), **RUN)
    stopped, teacher = made()
    with pytest.raises(TrainingStopped):
        ksurgeon.distill(stopped, teacher, pictures(), folder=tmp_path, listener=Interrupts(9), **RUN)
    fresh, teacher = made()
    ksurgeon.distill(fresh, teacher, pictures(), folder=tmp_path, resume=True, **RUN)
    assert torch.equal(weights(fresh), weights(through))


def test_checkpoints_of_another_kind_of_optimiser_go_on(tmp_path, monkeypatch):
    """As those that were written before AdamW was fused, when there were fewer settings."""
    through, teacher = pair()
    whole = ksurgeon.distill(through, teacher, vectors(), **RUN)
    stopped, teacher = pair()
    with monkeypatch.context() as patch, pytest.raises(TrainingStopped):
        patch.setattr(parameters, "_can_be_fused", lambda parameter: False)
        ksurgeon.distill(stopped, teacher, vectors(), folder=tmp_path, listener=Interrupts(9), **RUN)
    file = next((tmp_path / "checkpoints").glob("step-*")) / checkpoint._PLAIN
    plain = json.loads(file.read_text())
    assert plain["run"]["settings"].pop("channels_last") is False
    file.write_text(json.dumps(plain))
    fresh, teacher = pair()
    made, make = [], parameters.make_optimiser
    monkeypatch.setattr(loop, "make_optimiser", lambda *given: made.append(make(*given)) or made[-1])
    resumed = ksurgeon.distill(fresh, teacher, vectors(), folder=tmp_path, resume=True, **RUN)
    assert all(group["fused"] for group in made[0].param_groups)
    x = torch.stack(vectors(32, seed=1))  # factors of even norms are the same but for signs
    torch.testing.assert_close(fresh(x), through(x), rtol=1e-4, atol=1e-5)
    assert resumed.history[-1].step == whole.history[-1].step


class _Spare(zoo.Mlp):
    """Has a layer that no output depends on, as the pooler of an encoder."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(8, 8)


def test_parameters_without_gradients_do_not_keep_a_training_from_going_on(tmp_path):
    torch.manual_seed(0)
    teacher = _Spare().eval()
    student = copy.deepcopy(teacher)
    ksurgeon.convert(student, "linear", zoo.example("mlp"))
    through, stopped, fresh = (copy.deepcopy(student) for _ in range(3))
    ksurgeon.distill(through, teacher, vectors(), **RUN)
    with pytest.raises(TrainingStopped):
        ksurgeon.distill(stopped, teacher, vectors(), folder=tmp_path, listener=Interrupts(9), **RUN)
    ksurgeon.distill(fresh, teacher, vectors(), folder=tmp_path, resume=True, **RUN)
    assert torch.equal(weights(fresh), weights(through))


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
    assert any("starting from the beginning" in note for note in heard.notes)


class Fills(Listener):
    """Fills the disk after some steps."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch

    def step(self, step):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        if step.step == 5:
            self.monkeypatch.setattr(checkpoint, "save_file", full)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    student, teacher = pair()
    with pytest.raises(FolderError, match=r"no space is left.*before is whole: continue with --resume"):
        ksurgeon.distill(
            student, teacher, vectors(), folder=tmp_path, listener=Fills(monkeypatch), **RUN, checkpoint=1e-6
        )
    tensors, plain = Checkpoints(tmp_path / "checkpoints").last()
    assert plain["step"] == 4 and all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_ends_the_log_with_a_word(tmp_path):
    student, teacher = pair()
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(FolderError, match=r"the log .*log\.jsonl could not be written: No space left"):
        ksurgeon.distill(student, teacher, vectors(), folder=tmp_path, **RUN)


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


def test_a_result_that_cannot_be_written_is_had_again(tmp_path, heard):
    """The checkpoints stay until the result is kept."""

    def full(_):
        raise FolderError("the disk is full")

    through, teacher = pair()
    ksurgeon.distill(through, teacher, vectors(), **RUN)
    student, teacher = pair()
    settings = {**RUN, "checkpoint": 1e-6}
    with pytest.raises(FolderError, match="the disk is full"):
        ksurgeon.distill(student, teacher, vectors(), folder=tmp_path, keep=full, **settings)
    fresh, teacher = pair()
    ksurgeon.distill(fresh, teacher, vectors(), folder=tmp_path, resume=True, listener=heard, **settings)
    assert torch.equal(weights(fresh), weights(through)) and heard.steps == []


def test_a_training_that_begins_anew_removes_earlier_checkpoints(tmp_path):
    """They would be taken for its own, as their steps are later ones."""
    for after in (9, 3):
        student, teacher = pair()
        with pytest.raises(TrainingStopped):
            ksurgeon.distill(student, teacher, vectors(), folder=tmp_path, listener=Interrupts(after), **RUN)
    assert [place.name for place in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def test_layers_are_trained_again_where_no_checkpoint_is_whole(tmp_path, heard):
    (tmp_path / "checkpoints" / ".step-00000001.part").mkdir(parents=True)
    student, teacher = pair()
    settings = {**RUN, "steps": 1}
    ksurgeon.distill(student, teacher, vectors(), folder=tmp_path, resume=True, listener=heard, **settings)
    assert "layer by layer" in heard.stages


def test_without_a_folder_a_signal_promises_nothing():
    student, teacher = pair()
    with pytest.raises(TrainingStopped, match="no folder was given"):
        ksurgeon.distill(student, teacher, vectors(), listener=Interrupts(1), **RUN)
