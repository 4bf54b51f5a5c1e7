"""Distillation and fine-tuning from end to end, on tiny models."""

import copy
import json

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon.surgery.record import record_of
from ksurgeon.train.clock import Clock, rate_at
from ksurgeon.train.layerwise import SiteResult
from ksurgeon.train.log import Evaluation
from ksurgeon.train.permutations import Hardened
from ksurgeon.train.settings import make_settings
from ksurgeon.train.trained import Trained
from tests import zoo
from tests.train import texts
from tests.train.conftest import pair, pictures, vectors

FAST = {"batch": 16, "steps": 20, "device": "cpu", "evaluate": 3, "layerwise": 10}


@pytest.mark.parametrize(
    ("model", "rule", "lr"),
    [("mlp", "linear", 2e-3), ("convnet", "pointwise", 3e-4), ("encoder", "linear", 2e-3)],
)
def test_a_student_comes_nearer_to_its_teacher(model, rule, lr, heard):
    student, teacher = pair(model, rule)
    data = {"mlp": vectors(), "convnet": pictures(), "encoder": list(torch.randn(64, 5, 64))}[model]
    before = copy.deepcopy(student)
    trained = ksurgeon.distill(student, teacher, data, lr=lr, listener=heard, **FAST)
    assert trained.model is student and trained.steps == 20
    x = torch.stack(vectors(32, seed=9)) if model == "mlp" else zoo.example(model)
    with torch.no_grad():
        wanted = teacher(x)
        assert (student(x) - wanted).norm() < 0.98 * (before(x) - wanted).norm()
    errors = [evaluation.student["error"] for evaluation in heard.evaluations]
    assert errors[-1] < errors[0]
    phases = [stage for stage in heard.stages if stage != "asking the teacher"]
    assert phases == ["least squares", "layer by layer", "end to end"]
    assert [p.requires_grad for p in student.parameters()] == [p.requires_grad for p in before.parameters()]


def test_the_record_tells_of_the_training(tmp_path):
    student, teacher = pair()
    ksurgeon.distill(student, teacher, vectors(), **FAST)
    ksurgeon.save(student, tmp_path / "saved")
    again = ksurgeon.load(tmp_path / "saved", trust_remote_code=True)
    (training,) = record_of(again).trainings
    assert (training.steps, training.batch, training.teacher) == (20, 16, "Mlp")
    assert training.after["error"] < training.before["error"]
    x = torch.stack(vectors(4))
    torch.testing.assert_close(again(x), student(x))


def test_a_result_as_plain_data_and_back():
    model = nn.Linear(2, 2)
    trained = Trained(
        model,
        [Evaluation(step=2, seconds=1.5, loss=0.25, student={"cosine": 0.5}, teacher={"accuracy": 1.0})],
        steps=2,
        seconds=1.5,
        rate=8.0,
        layers=[SiteResult("a.b", 0.5, 0.25)],
        hardened={"shuffle": Hardened((1, 0), 0.125, 0.75, (1,))},
        broken=["a.png: OSError"],
    )
    assert Trained.from_plain(model, json.loads(json.dumps(trained.to_plain()))) == trained


def test_layers_learn_their_originals_on_their_inputs():
    """Inputs of low rank: a layer may be wrong wherever they do not lie."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    student = copy.deepcopy(teacher)
    ksurgeon.convert(student, "linear", torch.randn(2, 64))
    data = list(torch.randn(256, 4) @ torch.randn(4, 64))
    trained = ksurgeon.distill(student, teacher, data, steps=1, batch=32, device="cpu", layerwise=200)
    first = trained.layers[0]
    assert first.path == "0" and first.after < 0.3 * first.before


def test_labels_are_learned_without_a_teacher(heard):
    model, _ = pair()
    x = vectors(128)
    labelled = [(value, int(value[0] > 0)) for value in x]
    ksurgeon.finetune(
        model, labelled, task="classification", lr=1e-2, listener=heard, **{**FAST, "steps": 60}
    )
    assert heard.evaluations[-1].student["accuracy"] >= 0.8
    assert "agreement" not in heard.evaluations[-1].student


def test_logits_and_labels_together(heard):
    student, teacher = pair()
    labelled = [(value, int(value[0] > 0)) for value in vectors(64)]
    ksurgeon.distill(student, teacher, labelled, task="classification", listener=heard, **FAST)
    assert heard.steps[0].terms.keys() == {"logits", "task"}
    last = heard.evaluations[-1]
    assert last.teacher.keys() == {"accuracy"} and last.student.keys() == {"accuracy", "agreement"}


def test_what_is_kept_is_the_best(heard):
    """A rate that destroys the student leaves the weights from before."""
    student, teacher = pair()
    before = copy.deepcopy(student)
    ksurgeon.distill(
        student, teacher, vectors(), lr=0.3, clip=0, ema=0, listener=heard, **{**FAST, "layerwise": 0}
    )
    best = min(heard.evaluations, key=lambda evaluation: evaluation.loss)
    assert best.step == 0 and best.is_best
    x = torch.stack(vectors(8))
    torch.testing.assert_close(student(x), before(x), atol=1e-4, rtol=1e-4)


def test_early_stopping(heard):
    student, teacher = pair()
    settings = {**FAST, "steps": 200, "evaluate": 100}
    trained = ksurgeon.distill(
        student, teacher, vectors(), lr=0.3, clip=0, ema=0, patience=2, listener=heard, **settings
    )
    assert trained.steps < 20 and any("no better" in note for note in heard.notes)


def test_minutes_end_a_training(heard):
    student, teacher = pair()
    settings = {"batch": 16, "minutes": 0.02, "device": "cpu", "layerwise": 0, "least_squares": False}
    trained = ksurgeon.distill(student, teacher, vectors(), listener=heard, **settings)
    assert trained.seconds >= 1.2 and len(heard.steps) == trained.steps


def test_a_time_that_is_over_before_the_first_step_is_told(heard):
    student, teacher = pair()
    settings = {"batch": 16, "minutes": 1e-9, "device": "cpu", "layerwise": 0, "least_squares": False}
    trained = ksurgeon.distill(student, teacher, vectors(), listener=heard, **settings)
    assert trained.steps == 0 and any("no step of the whole" in note for note in heard.notes)


def test_progress_is_by_steps_or_by_time_whichever_is_ahead():
    both = Clock(make_settings(steps=100, minutes=1), batches=10, used=12.0)
    assert both.total == 100 and both.elapsed >= 12
    assert both.progress(0, 12.0) == 0 and both.progress(50, 12.0) == 0.5
    assert both.progress(10, 36.0) == 0.5 and both.progress(10, 60.0) == 1
    assert Clock(make_settings(), batches=10).total == 30
    assert Clock(make_settings(epochs=0.5), batches=10).total == 5
    assert Clock(make_settings(minutes=1), batches=10).total is None
    late = Clock(make_settings(minutes=1), batches=10, used=90.0)
    assert late.progress(0, 90.1) == 1
    rates = [rate_at(share / 100, make_settings(warmup=0.1)) for share in range(101)]
    assert max(rates) == rates[10] == 1 and rates[0] < 0.02 and rates[-1] < 1e-6


def test_frozen_parameters_stay():
    student, teacher = pair()
    head = student.head.weight.clone()
    up = student.up.matrix.factors[0].clone()
    ksurgeon.distill(student, teacher, vectors(), freeze=("head",), **FAST)
    assert torch.equal(student.head.weight, head) and student.head.weight.requires_grad
    assert not torch.equal(student.up.matrix.factors[0], up)


def test_accumulated_and_recomputed_gradients_are_the_same(tmp_path):
    results = []
    start, teacher = texts.pair("encoder", tmp_path)
    data = [{"input_ids": torch.randint(5, 20, (6,))} for _ in range(48)]
    for options in ({}, {"micro_batch": 4}, {"checkpointing": True}):
        student = copy.deepcopy(start)
        ksurgeon.distill(student, teacher, data, **{**FAST, "steps": 4, "layerwise": 0}, **options)
        results.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(results[2], results[0], atol=1e-5, rtol=1e-4)


def test_dropout_is_off_while_a_teacher_teaches():
    """The same training twice gives the same weights, whatever the random numbers do."""
    results = []
    for seed in (1, 2):
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5), nn.Linear(64, 4)).eval()
        student = copy.deepcopy(teacher)
        ksurgeon.convert(student, "linear", torch.randn(2, 64))
        torch.manual_seed(seed)
        ksurgeon.distill(student, teacher, vectors(), **{**FAST, "steps": 3})
        results.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
