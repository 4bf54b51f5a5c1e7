"""Bad input: one clear message, and a model that is still good."""

import copy

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon.errors import DataError, TrainingError
from ksurgeon.train.data import open_data
from ksurgeon.train.order import epoch_batches
from ksurgeon.train.settings import make_settings
from tests import zoo
from tests.train.conftest import pair, vectors

FAST = {"batch": 16, "steps": 4, "device": "cpu", "evaluate": 1, "layerwise": 0}
LABELLED = [(value, 12) for value in vectors(32)]


def _other_outputs():
    teacher = zoo.mlp()
    teacher.head = nn.Linear(64, 7)
    return teacher


@pytest.mark.parametrize(
    ("teacher", "data", "options", "error", "message"),
    [
        (None, [], {}, DataError, "no example"),
        (
            _other_outputs,
            vectors(),
            {},
            TrainingError,
            r"do not match: outputs is \(16, 7\).*weights\.outputs = 0",
        ),
        (lambda: nn.Linear(3, 10), vectors(), {}, TrainingError, "does not run on.*made from"),
        (None, LABELLED, {"task": "classification"}, DataError, "label 12 is out of range.*10 classes"),
        (None, [(v, torch.zeros(3)) for v in vectors(32)], {}, DataError, "labels of shape"),
        (None, vectors(), {"weights": {"hiden": 1}}, TrainingError, "hiden: the loss terms are"),
        (None, vectors(), {"weights": {"outputs": 0}}, TrainingError, "nothing to learn"),
        (None, vectors(), {"stepps": 3}, TrainingError, "did you mean steps"),
        (None, vectors(), {"steps": 0}, TrainingError, "greater than 0"),
        (None, vectors(), {"micro_batch": 5}, TrainingError, "does not divide"),
        (None, vectors(), {"freeze": ("nothing",)}, TrainingError, 'freeze = "nothing" names no parameter'),
        (None, vectors(), {"freeze": (r"re:.*",)}, TrainingError, "all are frozen"),
        (None, vectors(1), {"held_out": 0.9}, None, ""),
    ],
)
def test_what_cannot_be_trained(teacher, data, options, error, message):
    student, original = pair()
    before = copy.deepcopy(student.state_dict())
    teacher = teacher() if teacher else original
    if error is None:
        ksurgeon.distill(student, teacher, data, **{**FAST, **options})
        return
    with pytest.raises(error, match=message):
        ksurgeon.distill(student, teacher, data, **{**FAST, **options})
    assert all(torch.equal(student.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not student.training


@pytest.mark.parametrize("half", ["student", "teacher"])
def test_a_dtype_that_is_not_that_of_the_data(half):
    models = dict(zip(("student", "teacher"), pair(), strict=True))
    models[half].bfloat16()
    message = rf"the {half} does not run .*bfloat16, the data torch\.float32.*float"
    with pytest.raises(TrainingError, match=message):
        ksurgeon.distill(models["student"], models["teacher"], vectors(), **FAST)


def test_a_student_is_no_teacher_of_itself():
    student, _ = pair()
    with pytest.raises(TrainingError, match="same model"):
        ksurgeon.distill(student, student, vectors(), **FAST)


def test_a_model_without_a_record_needs_a_teacher():
    with pytest.raises(TrainingError, match="no record"):
        ksurgeon.distill(zoo.mlp(), None, vectors(), **FAST)


def test_nothing_to_learn_from_without_labels():
    student, _ = pair()
    with pytest.raises(TrainingError, match="nothing to learn"):
        ksurgeon.finetune(student, vectors(), **FAST)


class _Breaks(nn.Module):
    """Gives NaN for one of the examples."""

    def __init__(self):
        super().__init__()
        self.fine, self.broken = nn.Linear(64, 64), nn.Linear(64, 8)

    def forward(self, x):
        y = self.broken(self.fine(x))
        return torch.where((x[:, :1] == 77).expand_as(y), y / 0 * 0, y)


def test_a_loss_that_is_not_finite_ends_it_with_the_last_good_weights(tmp_path, heard):
    torch.manual_seed(0)
    teacher = _Breaks().eval()
    student = copy.deepcopy(teacher)
    ksurgeon.convert(student, "linear", torch.randn(2, 64))
    data = vectors(64)
    bad = data[40].clone()
    bad[0] = 77
    data[40] = bad
    with pytest.raises(TrainingError, match=r"not finite at step \d+: .* smaller learning rate"):
        ksurgeon.distill(
            student,
            nn.Sequential(teacher.fine, teacher.broken).eval(),
            data,
            folder=tmp_path,
            listener=heard,
            **{**FAST, "steps": 40, "evaluate": 8, "held_out": 0.1},
        )
    assert all(bool(parameter.isfinite().all()) for parameter in student.parameters())


def test_held_out_examples_that_break_the_student_end_it():
    """Nothing could be told to be better than a loss that is no number, and the training would be lost."""
    torch.manual_seed(0)
    teacher = _Breaks().eval()
    student = copy.deepcopy(teacher)
    ksurgeon.convert(student, "linear", torch.randn(2, 64))
    data = vectors(64)
    held_out = open_data(data, student, make_settings()).held_out[0]
    data[held_out] = data[held_out].clone()
    data[held_out][0] = 77
    sound = nn.Sequential(teacher.fine, teacher.broken).eval()
    with pytest.raises(
        TrainingError, match="held-out examples is not finite after step 0: the output of the mod"
    ):
        ksurgeon.distill(student, sound, data, **FAST)
    assert not student.training


def test_labels_that_are_out_of_range_later_leave_the_best_weights():
    student, teacher = pair()
    data = [(value, 3) for value in vectors(64)]
    at = open_data(data, student, make_settings(batch=16, held_out=0)).train
    last = epoch_batches(at, 16, 0, 0, None)[-1][0]
    data[last] = (data[last][0], -1)
    options = {**FAST, "task": "classification", "held_out": 0}
    with pytest.raises(DataError, match=r"label -1 is out of range: the model has 10 classes, 0 … 9; -100"):
        ksurgeon.distill(student, teacher, data, **options)
    assert all(bool(parameter.isfinite().all()) for parameter in student.parameters())


def test_the_module_that_broke_is_named():
    student, teacher = pair()
    with torch.no_grad():
        student.down.matrix.factors[0][0] = float("inf")
    with pytest.raises(TrainingError, match=r"the parameter down\.matrix\.factors\.0 is not"):
        ksurgeon.distill(student, teacher, vectors(), **FAST)
    from ksurgeon.train.faults import describe_fault

    class Root(nn.Module):
        def forward(self, x):
            return x.sqrt()

    model = nn.Sequential(nn.Linear(4, 4), Root())
    sound, batch = {"inputs": (torch.zeros(0, 4),)}, {"inputs": (torch.randn(64, 4),)}
    assert describe_fault(model, [sound, batch]) == "the output of 1 is not"
    assert describe_fault(model, [{"inputs": (torch.full((1, 4), torch.nan),)}]) == "the inputs are not"
    assert describe_fault(model, [sound]).startswith("the outputs are")
