"""Statistics of batch normalisation after surgery."""

import copy

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon.train.log import Listener, Phase
from ksurgeon.train.norms import batch_norms, carry_batch_norms, norms_match

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
    assert norms_match(student, teacher) and not norms_match(nn.Linear(2, 2), teacher)
    carry_batch_norms(student, teacher, _batches())
    torch.testing.assert_close(student.state_dict(), teacher.state_dict(), atol=1e-5, rtol=1e-5)


def test_a_channel_that_is_dead_in_the_teacher_alone():
    teacher = _teacher()
    with torch.no_grad():
        teacher.conv.weight[0] = 0
        teacher.norm.running_var[0] = 1
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.conv.weight[0] = 1
    carry_batch_norms(student, teacher, _batches())
    assert student.norm.running_var[0] < 20 and student.norm.running_mean[0].abs() < 20


def test_a_layer_that_the_teacher_has_not_is_estimated():
    teacher = _teacher()
    student = copy.deepcopy(teacher)
    student.last = nn.Sequential(nn.BatchNorm2d(64))
    student.eval()
    carry_batch_norms(student, teacher, _batches())
    seen = []
    student.last[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for batch in _batches():
        student(batch["inputs"])
    mean = torch.cat(seen).mean((0, 2, 3))
    torch.testing.assert_close(student.last[0].running_mean, mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(student.norm.running_mean, teacher.norm.running_mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_tiny_batches_are_taken_together(size):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32))
    teacher(torch.randn(512, 16))
    student = copy.deepcopy(teacher.eval())
    with torch.no_grad():
        student[0].weight *= 2
    carry_batch_norms(student, teacher, [{"inputs": torch.randn(size, 16)} for _ in range(8)])
    expected = 4 * (teacher[1].running_var + teacher[1].eps) - teacher[1].eps
    torch.testing.assert_close(student[1].running_var, expected, atol=1e-3, rtol=1e-3)


def test_layers_called_by_keyword_and_compiled_models():
    class ByKeyword(nn.Sequential):
        def forward(self, x):
            return self[1](input=self[0](x))

    torch.manual_seed(0)
    teacher = ByKeyword(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval()
    student = copy.deepcopy(teacher)
    x = torch.randn(16, 8)
    for model in (teacher, student):
        model.compile(backend="eager")
        model(x)
    with torch.no_grad():
        student[0].bias += 3
    carry_batch_norms(student, teacher, [{"inputs": x}])
    torch.testing.assert_close(student[1].running_mean, torch.full((8,), 3.0))


def test_hooks_are_removed_where_a_batch_fails():
    teacher = _teacher()
    student = copy.deepcopy(teacher)
    with pytest.raises(RuntimeError):
        carry_batch_norms(student, teacher, [*_batches(1), {"inputs": torch.randn(2, 5, 8, 8)}])
    for model in (teacher, student):
        assert not model.norm._forward_pre_hooks and not model.last._forward_pre_hooks


def test_a_second_training_goes_on_with_the_statistics_of_the_first():
    teacher = _teacher()
    student = copy.deepcopy(teacher)
    ksurgeon.convert(student, "pointwise", torch.randn(2, 3, 8, 8))
    data = list(torch.randn(32, 3, 8, 8))
    ksurgeon.distill(student, teacher, data, **{**FAST, "lr": 1e-2})
    before = student.norm.running_mean.clone()
    ksurgeon.distill(student, teacher, data, **FAST)
    assert torch.equal(student.norm.running_mean, before)


@pytest.mark.parametrize("fitted", [True, False])
def test_statistics_are_let_be_after_a_fit_to_data(fitted):
    teacher, told = _teacher(), []
    student, data = copy.deepcopy(teacher), list(torch.randn(64, 3, 8, 8))
    batches = list(torch.stack(data).split(16))
    ksurgeon.convert(student, "pointwise", batches[0], data=batches if fitted else None)
    listener = Listener()
    listener.judged = told.append
    ksurgeon.distill(student, teacher, data, **FAST, listener=listener)
    assert ("statistics" in {phase.name for phase in told}) != fitted


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


@pytest.mark.parametrize("teaches", [True, False])
@pytest.mark.parametrize("wrong", [True, False])
def test_averages_over_the_data_are_taken_where_the_student_is_better_with_them(wrong, teaches):
    """Not by a student that does what the teacher does, which was made for other data."""
    teacher = _teacher()
    with torch.no_grad():
        teacher.fc.weight *= 20
    student = copy.deepcopy(teacher)
    if wrong:
        with torch.no_grad():
            for parameter in student.conv.parameters():
                parameter *= 0.01
    x = torch.randn(64, 3, 8, 8) + (2 if wrong else 0)
    options = {**FAST, "batch_norm": "train", "lr": 1e-9, "held_out": 0.5}
    before = copy.deepcopy(student.state_dict())
    if teaches:
        trained = ksurgeon.distill(student, teacher, list(x), **options)
    else:
        data = list(zip(x, teacher(x).argmax(1).tolist(), strict=True))
        trained = ksurgeon.finetune(student, data, task="classification", **options)
    if wrong:
        assert (student.norm.running_var / teacher.norm.running_var).mean() < 0.01
        assert trained.best.betters(trained.history[0])
    else:
        assert all(torch.equal(student.state_dict()[name], value) for name, value in before.items())
    assert student.norm.momentum == 0.1 and not any(norm.training for norm in batch_norms(student).values())


def _pair() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(32, 64, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.Identity(),
        nn.Flatten(),
        nn.Linear(64, 4),
    )
    teacher = nn.Sequential(*layers)
    for _ in range(50):
        teacher.train()(torch.randn(64, 32, 1, 1))
    return teacher.eval(), copy.deepcopy(teacher)


def _distilled(student: nn.Module, teacher: nn.Module) -> bool:
    """Whether the teacher's statistics were carried over."""
    told: list[Phase] = []
    listener = Listener()
    listener.judged = told.append
    options = {**FAST, "lr": 1e-9, "batch_norm": "frozen", "listener": listener}
    ksurgeon.distill(student, teacher, list(torch.randn(256, 32, 1, 1)), **options)
    (kept,) = [phase.kept for phase in told if phase.name == "statistics"]
    return kept


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shrunk, carried", [("all of it", True), ("what it cannot know", False)])
def test_statistics_are_carried_only_where_the_student_is_nearer_with_them(shrunk, carried, training):
    """A layer that is half as large is mended by them; one that lacks a part of its output is not."""
    teacher, student = _pair()
    with torch.no_grad():
        if shrunk == "all of it":
            student[0].weight *= 0.5
        else:
            student[0].weight[:, 16:] = 0
    assert _distilled(student.train(training), teacher) == carried
    wanted = 0.25 if carried else 1.0
    assert (student[1].running_var / teacher[1].running_var).mean().item() == pytest.approx(wanted, rel=0.01)


def test_statistics_that_mend_a_loss_that_is_not_finite_are_kept():
    torch.manual_seed(0)
    layers = [m for _ in range(44) for m in (nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32))]
    teacher = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 4))
    for _ in range(50):
        teacher.train()(torch.randn(64, 32, 1, 1))
    student = copy.deepcopy(teacher.eval())
    with torch.no_grad():
        for conv in student[:-2:2]:
            conv.weight *= 3
    assert not student(1e2 * torch.ones(1, 32, 1, 1)).square().isfinite().all()
    assert _distilled(student, teacher)
    assert (student[1].running_var / teacher[1].running_var).mean().item() == pytest.approx(9, rel=0.01)


def test_a_deep_fresh_net_is_trained_from_statistics_of_its_data():
    """With a mean of 0 and a variance of 1 its outputs are infinite: nothing could be evaluated."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for number in range(30):
        layer = nn.Linear(64 if number else 4, 64, bias=False)
        nn.init.normal_(layer.weight, 0, 4)
        layers += [layer, nn.BatchNorm1d(64), nn.ReLU()]
    data = [(x, int(x[0] > 0)) for x in torch.randn(128, 4)]
    settings = {"task": "classification", "final": "last", "ema": 0.0, "steps": 4, "batch": 32}
    trained = ksurgeon.finetune(nn.Sequential(*layers, nn.Linear(64, 2)), data, device="cpu", **settings)
    assert not trained.history[0].is_finite() and trained.history[-1].is_finite()
