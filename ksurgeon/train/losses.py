"""Loss terms; each gives one number for every example, so that a batch may be split anywhere."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ksurgeon.calibrate.preprocess import IGNORED
from ksurgeon.errors import DataError, KsurgeonError, TrainingError
from ksurgeon.train.settings import Task

__all__ = [
    "TERMS",
    "Loss",
    "check_range",
    "cosine_and_square",
    "own_loss",
    "relative_square",
    "softened_divergence",
    "task_loss",
]

Loss = Callable[[nn.Module, Any, float], Tensor]
"""A user's loss: is given the model, the inputs of a batch (a tuple of positional or a mapping of keyword
arguments) and the share of the training that is done; gives a number for each example, or their mean."""

_TINY = 1e-12


def softened_divergence(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """``T² · KL(softmax(teacher / T) ‖ softmax(student / T))`` (Hinton, Vinyals, Dean 2015), ``(batch,)``.

    Args:
        student, teacher: ``(batch, …, classes)``.
        mask: ``(batch, positions)``, the positions that count.
    """
    s = F.log_softmax(student.float() / temperature, -1)
    t = F.log_softmax(teacher.float() / temperature, -1)
    return _mean((t.exp() * (t - s)).sum(-1) * temperature**2, mask)


def cosine_and_square(student: Tensor, teacher: Tensor, mask: Tensor | None = None, _: float = 1.0) -> Tensor:
    """``1 − cos(student, teacher)`` plus the relative squared error, of ``(batch, features)``."""
    angle = 1 - F.cosine_similarity(student.float(), teacher.float(), -1)
    return angle + relative_square(student, teacher)


def relative_square(student: Tensor, teacher: Tensor, mask: Tensor | None = None, _: float = 1.0) -> Tensor:
    """``‖student − teacher‖² / ‖teacher‖²`` of each example, over the positions that count."""
    teacher = teacher.float()
    squares = torch.stack([(student.float() - teacher).square(), teacher.square()])
    if mask is not None:
        squares = squares * mask.view(*mask.shape, *[1] * (teacher.dim() - 2))
    error, norm = squares.flatten(2).sum(-1) if squares.dim() > 2 else squares
    return error / (norm + _TINY)


TERMS: dict[str, Callable[[Tensor, Tensor, Tensor | None, float], Tensor]] = {
    "logits": softened_divergence,
    "embedding": cosine_and_square,
    "tokens": relative_square,
    "outputs": relative_square,
    "hidden": relative_square,
}
"""The losses between a student's and a teacher's output, by the name of their term."""


def task_loss(outputs: dict[str, Tensor], labels: Tensor, task: Task) -> Tensor:
    """Loss of the task on labels, ``(batch,)``: cross-entropy of logits, squared error of anything else.

    Labels of ``IGNORED`` count for nothing.

    Raises:
        DataError: labels of another shape than the outputs, or that are no class.
        TrainingError: outputs that no label says anything about.
    """
    name = next((n for n in ("logits", "outputs") if n in outputs), None)
    if name is None:
        raise TrainingError(
            f"the data has labels, and the model gives {', '.join(outputs) or 'no tensor'}: leave the labels "
            "out, set weights.task = 0, or name the --task"
        )
    output = outputs[name]
    if name == "outputs" or labels.is_floating_point():
        return _squared(output, labels)
    if task == "causal-lm":
        output, labels = output[:, :-1], labels[:, 1:]
    if labels.shape != output.shape[:-1]:
        raise DataError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(output.shape)}"
        )
    check_range(labels, output.shape[-1])
    losses = F.cross_entropy(
        output.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return _mean(losses.view(labels.shape), labels != IGNORED if labels.dim() > 1 else None)


def own_loss(loss: Loss, model: nn.Module, inputs: Any, examples: int, progress: float) -> Tensor:
    """What a user's loss gives for a batch, ``(batch,)``.

    Raises:
        TrainingError: it raised, or gives something else, or what no parameter has an influence on.
    """
    try:
        value = loss(model, inputs, progress)
    except (KsurgeonError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise TrainingError(
            f"the loss {_name(loss)} raised {type(error).__name__}: {error}; it is called with the model, "
            "the inputs of a batch and the share of the training that is done"
        ) from error
    if not isinstance(value, Tensor) or value.shape not in ((), (examples,)):
        given = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TrainingError(
            f"the loss {_name(loss)} gave {given}; return a tensor of shape ({examples},), one number for "
            "each example, or their mean, a tensor without dimensions"
        )
    if torch.is_grad_enabled() and not value.requires_grad:
        raise TrainingError(
            f"the loss {_name(loss)} depends on no parameter that is trained; compute it from what the model "
            "gives, without detach() and no_grad(), and see what freeze names"
        )
    return value.float().expand(examples)


def _name(loss: Loss) -> str:
    return getattr(loss, "__name__", type(loss).__name__)


def check_range(labels: Tensor, classes: int) -> None:
    """Return if all labels are classes of the model, or ``IGNORED``; raises ``DataError`` otherwise."""
    outside = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))]
    if outside.numel():
        raise DataError(
            f"label {outside[0].item()} is out of range: the model has {classes} classes, 0 … {classes - 1}; "
            f"{IGNORED} marks what does not count"
        )


def _squared(output: Tensor, labels: Tensor) -> Tensor:
    output = output.float()
    if output.dim() == labels.dim() + 1 and output.shape[-1] == 1:
        output = output.squeeze(-1)
    if output.shape != labels.shape:
        raise DataError(
            f"labels of shape {tuple(labels.shape)} do not fit outputs of shape {tuple(output.shape)}"
        )
    return _mean((output - labels.float()).square(), None)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over all dimensions but the first, ``mask`` telling which positions count."""
    if values.dim() == 1:
        return values
    if mask is None:
        return values.flatten(1).mean(1)
    mask = mask.to(values.dtype).view(*mask.shape, *[1] * (values.dim() - mask.dim()))
    total = mask.expand_as(values).flatten(1).sum(1).clamp_min(1)
    return (values * mask).flatten(1).sum(1) / total
