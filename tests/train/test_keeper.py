"""What a training leaves is never worse than what it was given, on the held-out examples."""

import copy

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import KLinear
from ksurgeon.surgery.record import record_of
from ksurgeon.train.data import open_data
from ksurgeon.train.log import Evaluation
from ksurgeon.train.settings import make_settings
from tests.train.conftest import pair, vectors
from tests.train.test_resume import Interrupts

FAST = {"batch": 16, "steps": 6, "device": "cpu", "evaluate": 2}


def _state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _products(model):
    """Weights and biases; factors may be balanced anew, which leaves their product."""
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, (nn.Linear, KLinear))}
    return {path: (layer.weight.detach(), layer.bias) for path, layer in layers.items()}


def _same(model, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["least squares", "layer by layer"])
def test_a_phase_that_makes_the_whole_worse_is_undone(name, heard, monkeypatch):
    """Every layer is nearer to its original afterwards, and the model further from the teacher."""
    student, teacher = pair()
    before = _products(student)
    attempts = {"least squares": "least_squares", "layer by layer": "descend"}

    def spoil(problem, **_):
        with torch.no_grad():
            for parameter in problem.parameters:
                parameter *= 3

    monkeypatch.setattr(f"ksurgeon.train.phases.{attempts[name]}", spoil)
    judge = "ksurgeon.train.layerwise._Problem.judge"
    monkeypatch.setattr(judge, lambda problem: 1 / float(problem.parameters[0].detach().norm()))
    options = {"least_squares": name == "least squares", "layerwise": 5 if name == "layer by layer" else 0}
    trained = ksurgeon.distill(student, teacher, vectors(), lr=1e-12, listener=heard, **FAST, **options)
    (phase,) = [phase for phase in heard.phases if phase.name == name]
    assert not phase.kept and phase.before == trained.history[0] and phase.after.value > phase.before.value
    assert str(phase).endswith("held-out examples: no better, undone")
    assert trained.layers == []
    torch.testing.assert_close(_products(student), before, atol=1e-4, rtol=1e-4)


def test_before_is_the_student_as_it_came(heard):
    student, teacher = pair()
    data = vectors()
    held_out = torch.stack([data[i] for i in open_data(data, student, make_settings()).held_out])
    with torch.no_grad():
        wanted = teacher(held_out)
        error = ((student(held_out) - wanted).norm(dim=1) / wanted.norm(dim=1)).mean()
    trained = ksurgeon.distill(student, teacher, data, listener=heard, **FAST)
    first = trained.history[0]
    assert first.student["error"] == pytest.approx(error.item(), rel=1e-4)
    assert heard.phases[0].before == first and first.examples == len(held_out)
    assert trained.best.betters(first)


@pytest.mark.parametrize("ends", ["worse", "no time", "signal", "nan", "interrupt"])
def test_a_student_that_nothing_bettered_is_the_one_that_came(ends, heard):
    student, teacher = pair()
    before = _state(student)
    options = {**FAST, "least_squares": False, "layerwise": 0, "ema": 0, "clip": 0, "lr": 0.3}
    if ends == "no time":
        options = {**options, "steps": None, "minutes": 1e-9}
    data = vectors()
    if ends == "nan":
        data[open_data(data, student, make_settings()).train[-1]] = torch.full((64,), torch.nan)
        options |= {"cache_teacher": False, "steps": 40}
    listener = heard
    if ends in ("signal", "interrupt"):
        listener = Interrupts(4) if ends == "signal" else _Twice()
    expected = {"signal": ksurgeon.errors.TrainingStopped, "nan": ksurgeon.errors.TrainingError}
    error = {**expected, "interrupt": KeyboardInterrupt}.get(ends)
    if error is not None:
        with pytest.raises(error):
            ksurgeon.distill(student, teacher, data, listener=listener, **options)
    else:
        trained = ksurgeon.distill(student, teacher, data, listener=listener, **options)
        assert trained.best == trained.history[0]
    assert _same(student, before) and not student.training


class _Twice(Interrupts):
    def __init__(self):
        super().__init__(3)

    def step(self, step):
        super().step(step)
        super().step(step)


def test_defaults_follow_how_the_student_was_made(heard):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    students = [copy.deepcopy(teacher) for _ in range(2)]
    x = torch.randn(64, 64)
    ksurgeon.convert(students[0], "linear", x[:2])
    ksurgeon.convert(students[1], "linear", x[:2], data=[x])
    assert [[o.calibrated for o in record_of(s).operations] for s in students] == [[False] * 2, [True] * 2]
    for student, phases in zip(students, (["least squares", "layer by layer"], []), strict=True):
        heard.stages.clear()
        for again in (phases, []):  # a second training does not throw the first one away
            ksurgeon.distill(student, teacher, list(x), listener=heard, **FAST)
            told = [stage for stage in heard.stages if stage in ("least squares", "layer by layer")]
            assert told == again
            heard.stages.clear()
    ksurgeon.distill(students[1], teacher, list(x), listener=heard, layerwise=3, **FAST)
    assert "layer by layer" in heard.stages and "least squares" not in heard.stages


def test_the_metric_decides_and_the_loss_where_it_is_the_same():
    def evaluation(loss, **metrics):
        return Evaluation(step=0, seconds=0.0, loss=loss, student=metrics)

    assert evaluation(2.0, cosine=0.9).betters(evaluation(1.0, cosine=0.8))
    assert evaluation(1.0, agreement=0.5).betters(evaluation(2.0, agreement=0.5))
    assert evaluation(1.0, error=0.1).betters(evaluation(0.5, error=0.2))
    assert evaluation(1.0).betters(evaluation(2.0)) and not evaluation(1.0).betters(evaluation(1.0))
    assert evaluation(9.0).betters(evaluation(float("nan")))
    assert not evaluation(float("nan"), cosine=1.0).betters(evaluation(9.0, cosine=0.1))
    both = evaluation(1.0, agreement=0.9, accuracy=0.5)
    assert (both.metric, both.value, both.rises) == ("accuracy", 0.5, True)


@pytest.mark.parametrize("price", [0.001, 1.0, 30.0])
def test_evaluations_take_a_tenth_of_the_time(price, heard, monkeypatch):
    """Whatever they cost: on a clock that goes on by so many seconds for an example, three times to train."""
    now = [0.0]

    class Clockwork:
        perf_counter = staticmethod(lambda: now[0])

    for module in ("clock", "evaluate"):
        monkeypatch.setattr(f"ksurgeon.train.{module}.time", Clockwork)
    student, teacher = pair()

    def spend(_, args):
        now[0] += price * len(args[0]) * (3 if torch.is_grad_enabled() else 1)

    student.register_forward_pre_hook(spend)
    minutes = {0.001: 0.1, 1.0: 400, 30.0: 400}[price]
    trained = ksurgeon.distill(
        student, teacher, vectors(400), batch=16, minutes=minutes, device="cpu", held_out=0.5,
        least_squares=False, layerwise=0, listener=heard,
    )  # fmt: skip
    assert trained.steps > 0 and 0 < trained.evaluating <= 0.1 * 60 * minutes
    counts = {evaluation.examples for evaluation in trained.history}
    assert len(counts) == 1
    (count,) = counts
    assert 32 <= count <= 200
    assert any(f"{count} of 200 held-out examples decide" in note for note in heard.notes) == (count < 200)


def test_a_limited_time_is_not_spent_on_the_teacher(heard):
    """Its outputs of an example are computed when they are needed, and once."""
    student, teacher = pair()
    data, asked = vectors(400), []
    options = {"batch": 4, "device": "cpu", "least_squares": False, "layerwise": 0, "listener": heard}
    teacher.register_forward_pre_hook(lambda _, args: asked.extend(map(tuple, args[0].tolist())))
    ksurgeon.distill(student, teacher, data, minutes=1e-9, **options)
    assert 0 < len(asked) < 100 and "asking the teacher" not in heard.stages
    asked.clear()
    trained = ksurgeon.distill(student, teacher, data, minutes=1e6, steps=300, **options)
    assert trained.steps == 300 and len(set(asked)) == 400
    assert len(asked) < 500


def test_what_there_is_no_time_for_is_left_out(heard):
    student, teacher = pair()
    ksurgeon.distill(student, teacher, vectors(), batch=16, minutes=1e-9, device="cpu", listener=heard)
    assert heard.phases == [] and "layer by layer: left out, as 50% of the time is over" in heard.notes
