"""Distillation and fine-tuning: one call each."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from ksurgeon.errors import TrainingError
from ksurgeon.surgery.storage import load
from ksurgeon.train.log import Listener, logged
from ksurgeon.train.losses import Loss
from ksurgeon.train.options import SettingsOptions
from ksurgeon.train.session import CHECKPOINTS, Keep, place_of, train
from ksurgeon.train.settings import Settings, make_settings
from ksurgeon.train.teacher import FoundTeacher, find_teacher
from ksurgeon.train.trained import Trained

__all__ = ["Trained", "distill", "finetune"]


def distill(
    student: nn.Module | str | Path,
    teacher: nn.Module | FoundTeacher | str | None = None,
    data: Any = None,
    *,
    settings: Settings | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    preprocessor: Any = None,
    trust_remote_code: bool = False,
    sites: Collection[str] | None = None,
    listener: Listener | None = None,
    keep: Keep = lambda _: None,
    **options: Unpack[SettingsOptions],
) -> Trained:
    """Let an operated model learn from its original, on data that needs no labels.

    Stage 1 trains every replaced layer on its own, on its original's inputs, unless it was fitted to data;
    stage 2 trains the whole model on the teacher's outputs, the hidden states of matching blocks, and labels
    where there are some. Each is undone unless the whole model is better on held-out examples with it, so
    that the student is never worse there than it came, also where this raises.

    Args:
        student: a converted model, changed in place, or its folder.
        teacher: a model, what ``find_teacher`` gave, or a name as any command takes it; left out, what the
            student was made from.
        data: as ``open_source`` takes it.
        settings, options: as ``Settings`` lists them; options go over settings.
        folder: for checkpoints and the log; nothing is written without it.
        resume: go on from the last checkpoint in ``folder``.
        device: "cpu" keeps off GPUs; left out, what accelerate chooses.
        preprocessor: in place of that which belongs to the model.
        trust_remote_code: whether code that a folder brings or names may run; see ``ksurgeon.load``.
        sites: paths of the layers that stage 1 trains; all that were replaced, if left out.
        listener: is told of every step.
        keep: is given the result before the checkpoints are removed, so that they are still there if the
            result cannot be written.

    Raises:
        DataError: data that is empty, damaged beyond its limit, or of no use to the model.
        TrainingError: teacher and student that do not match, settings that make no sense, or a loss that is
            not finite; the student then holds the best weights so far.
        TrainingStopped: a signal ended it.
        FolderError: a checkpoint could not be written.
    """
    model = (
        load(student, trust_remote_code=trust_remote_code) if isinstance(student, (str, Path)) else student
    )
    chosen = make_settings(settings, **options)
    if isinstance(teacher, nn.Module):
        found = FoundTeacher(teacher, type(teacher).__name__)
    else:
        found = (
            teacher
            if isinstance(teacher, FoundTeacher)
            else find_teacher(model, teacher, None, trust_remote_code)
        )
    if found.warning and listener is not None:
        listener.note(found.warning)
    if found.model is model:
        raise TrainingError("teacher and student are the same model; give a copy from before the conversion")
    place = place_of(folder, resume)
    with logged(place, resume, listener) as told:
        return train(
            model,
            found,
            data,
            chosen,
            listener=told,
            folder=place,
            checkpoints=place and place / CHECKPOINTS,
            resume=resume,
            device=device,
            preprocessor=preprocessor,
            sites=sites,
            keep=keep,
        )


def finetune(
    model: nn.Module | str | Path,
    data: Any,
    *,
    loss: Loss | None = None,
    settings: Settings | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    preprocessor: Any = None,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
    keep: Keep = lambda _: None,
    **options: Unpack[SettingsOptions],
) -> Trained:
    """Train a model on labels, without a teacher; arguments, and what is raised, are those of ``distill``.

    Args:
        loss: in place of that of the labels, for data without any: is given the model, the inputs of a batch
            as it takes them (a tuple of positional or a mapping of keyword arguments), and the share of the
            training that is done, 0 to 1; gives a loss for each example, ``(batch,)``, or their mean. What
            is evaluated is this loss, for a share of 1 at any time.
    """
    model = load(model, trust_remote_code=trust_remote_code) if isinstance(model, (str, Path)) else model
    chosen = make_settings(settings, **options)
    place = place_of(folder, resume)
    with logged(place, resume, listener) as told:
        return train(
            model,
            None,
            data,
            chosen,
            loss=loss,
            listener=told,
            folder=place,
            checkpoints=place and place / CHECKPOINTS,
            resume=resume,
            device=device,
            preprocessor=preprocessor,
            keep=keep,
        )
