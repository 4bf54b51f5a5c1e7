"""Gradual surgery that is interrupted goes on to the same result, group by group and in the middle of one."""

import json
import os
import signal

import pytest
import torch

import ksurgeon
from ksurgeon.errors import FolderError, TrainingError, TrainingStopped
from ksurgeon.surgery.record import record_of
from ksurgeon.train.checkpoint import Checkpoints
from ksurgeon.train.log import Listener
from tests.train.conftest import pair, vectors

RUN = {"groups": 2, "batch": 8, "steps": 12, "device": "cpu", "evaluate": 2, "layerwise": 3}


class Interrupts(Listener):
    """Sends a signal after a group, or after a step of it."""

    def __init__(self, group, step=None):
        self.wanted, self.now = (group, step), 0

    def group(self, group):
        self.now = group.number

    def step(self, step):
        if (self.now, step.step) == self.wanted:
            os.kill(os.getpid(), signal.SIGTERM)

    def healed(self, stage):
        if (self.now, None) == self.wanted:
            os.kill(os.getpid(), signal.SIGINT)


def state(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def gradually(folder=None, data=None, **options):
    student, teacher = pair()
    return ksurgeon.distill_gradually(
        student, teacher, data or vectors(), folder=folder, **{**RUN, **options}
    )


@pytest.fixture(scope="module")
def whole():
    return gradually()


@pytest.mark.parametrize(("group", "step"), [(1, None), (1, 3), (2, 4)])
def test_a_resumed_surgery_ends_the_same(group, step, whole, tmp_path):
    message = f"after group {group} of 2" if step is None else rf"after step {step}; .*group-{group}"
    with pytest.raises(TrainingStopped, match=message + ".*--resume"):
        gradually(tmp_path, listener=Interrupts(group, step))
    torch.manual_seed(123)
    resumed = gradually(tmp_path, resume=True)
    assert torch.equal(state(resumed.model), state(whole.model))
    assert resumed.stages == whole.stages and resumed.left == []
    assert [e.loss for e in resumed.trained.history] == [e.loss for e in whole.trained.history]
    ours, wholly = record_of(resumed.model), record_of(whole.model)
    assert ours.operations == wholly.operations and len(ours.trainings) == 2
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [(e["group"], e["step"]) for e in events if e["event"] == "step"]
    assert steps == [(g, s) for g in (1, 2) for s in range(1, 7)]
    healed = [e for e in events if e["event"] == "healed"]
    assert [(e["group"], e["metric"], e["kept"]) for e in healed] == [(1, "error", True), (2, "error", True)]
    assert all(e["paths"] and e["teacher"] == 0 for e in healed)
    assert not (tmp_path / "checkpoints").exists()


def test_an_undone_group_stays_undone(tmp_path):
    """Of the result that could not be written, as it is found again."""

    def full(_):
        raise FolderError("the disk is full")

    worth = iter([1.0, 0.95, 0.5])
    with pytest.raises(FolderError, match="the disk is full"):
        gradually(tmp_path, tolerance=0.1, metric=lambda _: next(worth), keep=full)
    kept = []
    again = gradually(tmp_path, tolerance=0.1, metric=lambda _: 1.0, keep=kept.append, resume=True)
    assert [stage.kept for stage in again.stages] == [True, False] and kept == [again]
    assert [o.path for o in record_of(again.model).operations] == again.stages[0].paths
    assert again.trained.model is again.model and len(record_of(again.model).trainings) == 1


def test_only_the_same_surgery_goes_on(tmp_path):
    with pytest.raises(TrainingStopped):
        gradually(tmp_path, listener=Interrupts(1))
    with pytest.raises(TrainingError, match="another groups"):
        gradually(tmp_path, groups=1, resume=True)
    student, teacher = pair()
    with pytest.raises(TrainingError, match="another data"):
        gradually(tmp_path, data=vectors(40), resume=True)
    with pytest.raises(TrainingError, match="another groups"):
        ksurgeon.distill(student, teacher, vectors(), folder=tmp_path, resume=True, device="cpu", steps=2)
    assert Checkpoints(tmp_path / "checkpoints").exist()
    with pytest.raises(TrainingError, match="resume needs the folder"):
        gradually(resume=True)


def test_a_group_that_fails_is_named_and_those_before_are_kept(tmp_path, heard):
    data = vectors()

    class Spoils(Listener):
        def healed(self, stage):
            data[:] = [torch.full((64,), float("nan"))] * len(data)

    options = {"layerwise": 0, "least_squares": False, "cache_teacher": False}
    with pytest.raises(
        TrainingError, match=r"group 2 of 2: the loss .*: the inputs are not.*remove .*group-2"
    ):
        gradually(tmp_path, data=data, listener=Spoils(), **options)
    found = gradually(tmp_path, resume=True, listener=heard, **options)
    assert [stage.kept for stage in found.stages] == [True, True]
    assert "continuing after group 1 of 2" in heard.notes
    with pytest.raises(TrainingError, match="set held_out above 0"):
        gradually(held_out=0)
