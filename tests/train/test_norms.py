"""Statistics of batch normalisation after surgery."""

import copy

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon.train.norms import batch_norms, carry_batch_norms, estimate_batch_norms

FAST = {"batch": 16, "steps": 5, "device": "cpu", "evaluate": 1, "layerwise": 0}


class _Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64)
        self.next, self.last, self.fc = nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64), nn.Linear(64, 4)

    def forward(self, x):
        return self.fc(self.last(self.next(self.norm(self.conv(x)).relu())).mean((2, 3)))


def _teacher() -> _Normed:
    """Whose statistics are of other inputs than those of the tests."""
    torch.manual_seed(0)
    teacher = _Normed()
    teacher.train()
    for _ in range(50):
        teacher(2 + torch.randn(16, 3, 8, 8))
    return teacher.eval()


def _batches(count=4):
    generator = torch.Generator().manual_seed(1)
    return [{"inputs": torch.randn(8, 3, 8, 8, generator=generator)} for _ in range(count)]


def test_what_surgery_does_to_a_channel_is_done_to_its_statistics():
    """Scales and shifts of channels are undone, on inputs unlike those that told of them."""
    teacher = _teacher()
    student = copy.deepcopy(teacher)
    generator = torch.Generator().manual_seed(2)
    scale, shift = 0.5 + torch.rand(64, generator=generator), torch.randn(64, generator=generator)
    with torch.no_grad():
        for conv in (student.conv, student.next):
            conv.weight *= scale[:, None, None, None]
            conv.bias.mul_(scale).add_(shift)
    x = 2 + torch.randn(4, 3, 8, 8, generator=generator)
    assert not torch.allclose(student(x), teacher(x), atol=1e-2)
    kept = copy.deepcopy(teacher.state_dict())
    carry_batch_norms(student, teacher, _batches())
    torch.testing.assert_close(student(x), teacher(x), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(teacher.state_dict(), kept, rtol=0, atol=0)
    assert not teacher.norm._forward_pre_hooks and not student.norm._forward_pre_hooks


def test_statistics_of_an_unchanged_model_stay():
    teacher = _teacher()
    student = copy.deepcopy(teacher)
    carry_batch_norms(student, teacher, _batches())
    torch.testing.assert_close(student.state_dict(), teacher.state_dict(), atol=1e-5, rtol=1e-5)


def test_a_channel_without_variance_does_no_harm():
    teacher = _teacher()
    with torch.no_grad():
        teacher.conv.weight[0] = 0
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.conv.weight[0] = 1e-4
    carry_batch_norms(student, teacher, _batches())
    assert all(value.isfinite().all() for value in student.state_dict().values())
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(student(x), teacher(x), atol=1e-2, rtol=1e-2)


def test_a_layer_that_the_teacher_has_not_is_estimated():
    teacher = _teacher()
    student = copy.deepcopy(teacher)
    student.last = nn.Sequential(nn.BatchNorm2d(64))
    expected = copy.deepcopy(student)
    student.eval()
    carry_batch_norms(student, teacher, _batches())
    estimate_batch_norms(expected.eval(), _batches())
    torch.testing.assert_close(student.last[0].running_mean, expected.last[0].running_mean)
    torch.testing.assert_close(student.norm.running_mean, teacher.norm.running_mean, atol=1e-5, rtol=1e-5)


def test_a_layer_that_is_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

        def forward(self, x):
            return self.norm(self.fc(self.norm(x)))

    torch.manual_seed(0)
    teacher = Twice()
    teacher(torch.randn(64, 8))
    student = copy.deepcopy(teacher.eval())
    before = student.norm.running_mean.clone()
    carry_batch_norms(student, teacher, [{"inputs": torch.randn(64, 8)}])
    torch.testing.assert_close(student.norm.running_mean, before)


@pytest.mark.parametrize(
    "batch_norm, teaches, anew",
    [("train", True, True), ("frozen", True, False), ("auto", True, False), ("auto", False, True)],
)
def test_statistics_in_a_training(batch_norm, teaches, anew):
    teacher = _teacher()
    student = copy.deepcopy(teacher)
    ksurgeon.convert(student, "pointwise", torch.randn(2, 3, 8, 8))
    data = [(x, 1) for x in torch.randn(32, 3, 8, 8)]
    options = {**FAST, "batch_norm": batch_norm, "lr": 1e-6}
    if teaches:
        ksurgeon.distill(student, teacher, [x for x, _ in data], **options)
    else:
        ksurgeon.finetune(student, data, task="classification", **options)
    moved = (student.norm.running_mean - teacher.norm.running_mean).abs().mean()
    assert (moved > 0.3) == anew
    assert student.norm.momentum == 0.1 and not any(norm.training for norm in batch_norms(student).values())
