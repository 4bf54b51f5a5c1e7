"""Gradual surgery, and the Trainer of transformers."""

import copy

import pytest
import torch

import ksurgeon
from ksurgeon.errors import TrainingError
from ksurgeon.surgery.record import record_of
from tests import zoo
from tests.train.conftest import pair, vectors

FAST = {"batch": 16, "steps": 12, "device": "cpu", "evaluate": 2, "layerwise": 5}


def test_all_groups_are_operated_where_nothing_forbids_it(tmp_path, heard):
    student, teacher = pair("encoder")
    before = copy.deepcopy(student.state_dict())
    data = list(torch.randn(32, 5, 64))
    found = ksurgeon.distill_gradually(student, teacher, data, groups=2, order="back", listener=heard, **FAST)
    wanted = [operation.path for operation in record_of(student).operations]
    assert [stage.kept for stage in found.stages] == [True, True] and found.left == []
    assert sorted(path for stage in found.stages for path in stage.paths) == sorted(wanted)
    assert found.stages[0].paths[0] == wanted[-1]
    assert type(found.model.get_submodule(wanted[0])) is type(student.get_submodule(wanted[0]))
    assert all(torch.equal(student.state_dict()[name], value) for name, value in before.items())
    ksurgeon.save(found.model, tmp_path / "all")
    x = zoo.example("encoder")
    torch.testing.assert_close(ksurgeon.load(tmp_path / "all", trust_remote_code=True)(x), found.model(x))


def test_what_breaks_the_tolerance_is_undone(tmp_path):
    student, teacher = pair()
    worth = iter([1.0, 0.95, 0.5])
    found = ksurgeon.distill_gradually(
        student, teacher, vectors(), groups=2, tolerance=0.1, metric=lambda _: next(worth), **FAST
    )
    assert [stage.kept for stage in found.stages] == [True, False]
    kept, left = found.stages[0].paths, found.stages[1].paths
    assert found.left == left and [o.path for o in record_of(found.model).operations] == kept
    assert isinstance(found.model.get_submodule(left[0]), torch.nn.Linear)
    ksurgeon.save(found.model, tmp_path / "part")
    x = zoo.example("mlp")
    torch.testing.assert_close(ksurgeon.load(tmp_path / "part", trust_remote_code=True)(x), found.model(x))


def test_a_tolerance_that_the_first_group_breaks():
    student, teacher = pair()
    with pytest.raises(TrainingError, match="first group"):
        ksurgeon.distill_gradually(student, teacher, vectors(), groups=2, tolerance=1e-6, **FAST)
    with pytest.raises(TrainingError, match="made from"):
        ksurgeon.distill_gradually(student, torch.nn.Linear(64, 10), vectors(), **FAST)


def test_all_groups_together_are_no_worse_than_the_student_as_it_came(heard, monkeypatch):
    student, teacher = pair()
    monkeypatch.setattr("ksurgeon.train.groups._copy_values", lambda *_: None)
    options = {**FAST, "steps": 2, "lr": 1e-12, "least_squares": False, "layerwise": 0}
    found = ksurgeon.distill_gradually(student, teacher, vectors(), groups=2, listener=heard, **options)
    (phase,) = [phase for phase in heard.phases if phase.name == "the student as it came"]
    assert phase.kept and found.left == []
    x = torch.stack(vectors(8))
    torch.testing.assert_close(found.model(x), student(x), atol=1e-4, rtol=1e-4)


def test_the_trainer_of_transformers(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

    from ksurgeon.train.trainer import DistillationTrainer

    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=64, vocab_size=50
    )
    teacher = BertForSequenceClassification(config).eval()
    student = copy.deepcopy(teacher)
    ids = torch.randint(0, 50, (32, 6))
    ksurgeon.convert(student, "linear", {"input_ids": ids[:2]})
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=8, max_steps=8, learning_rate=5e-4,
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", logging_steps=1,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": int(row[0] > 25)} for row in ids]
    trainer = DistillationTrainer(student, arguments, teacher=teacher, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    rates = {group["weight_decay"]: len(group["params"]) for group in trainer.optimizer.param_groups}
    assert len(trainer.optimizer.param_groups) == 3 and rates
