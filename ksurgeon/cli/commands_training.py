"""What the commands that train are asked: arguments, options, help; imports no torch."""

from dataclasses import dataclass
from typing import Annotated

import typer

from ksurgeon.cli.options import (
    AsJson,
    Batch,
    Epochs,
    Folder,
    Minutes,
    Output,
    Rate,
    Resume,
    SetOptions,
    SomeSeed,
    Steps,
    TaskName,
    TrainingData,
    TrustRemoteCode,
    Where,
    Yes,
    expanded,
)

__all__ = ["Distill", "Finetune", "RunRecipe"]


@dataclass(frozen=True)
class _Subject:
    folder: Folder
    data: TrainingData


@dataclass(frozen=True)
class _Teacher:
    teacher: Annotated[
        str | None,
        typer.Option(callback=expanded, help="any MODEL; the one that FOLDER was made from if left out"),
    ] = None
    teacher_weights: Annotated[
        str | None, typer.Option(callback=expanded, help="auto, pretrained, or FILE.safetensors")
    ] = None
    gradual: Annotated[int, typer.Option(help="convert in N groups and distil after each")] = 0
    tolerance: Annotated[
        float | None,
        typer.Option(help="with --gradual: stop before a held-out metric falls by more than this"),
    ] = None


@dataclass(frozen=True)
class _Training:
    task: TaskName = None
    steps: Steps = None
    epochs: Epochs = None
    minutes: Minutes = None
    batch: Batch = None
    lr: Rate = None
    output: Output = None
    resume: Resume = False
    device: Where = None
    trust_remote_code: TrustRemoteCode = False
    seed: SomeSeed = None
    set: SetOptions = None
    json: AsJson = False
    yes: Yes = False


@dataclass(frozen=True)
class Distill(_Training, _Teacher, _Subject):  # options in the order of the bases, the last one first
    """Distil the original into a converted model, on unlabelled data.

    The folder is FOLDER-distilled unless -o names another; checkpoints and log lie beside it.
    """


@dataclass(frozen=True)
class Finetune(_Training, _Subject):
    """Train a converted model on labels, without a teacher.

    The folder is FOLDER-finetuned unless -o names another; checkpoints and log lie beside it.
    """


@dataclass(frozen=True)
class RunRecipe:
    """Run a recipe, a whole experiment: conversion, training and evaluation, written to a results file.

    The folder is runs/NAME unless -o names another.
    """

    recipe: Annotated[
        str,
        typer.Argument(callback=expanded, metavar="RECIPE", help="a recipe file (.toml)", show_default=False),
    ]
    output: Output = None
    minutes: Annotated[float | None, typer.Option(help="of training, in place of the recipe's")] = None
    only: Annotated[list[str] | None, typer.Option(help="of the recipe's variants, only this one")] = None
    quick: Annotated[
        bool,
        typer.Option("--quick", help="a short run to see that everything works; the folder is NAME-quick"),
    ] = False
    seeds: Annotated[int | None, typer.Option(min=1, help="of every variant, in place of the recipe's")] = (
        None
    )
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="parallel trainings; from scratch as many as there are cores, otherwise one"
        ),
    ] = None
    resume: Resume = False
    device: Where = None
    trust_remote_code: TrustRemoteCode = False
    set: SetOptions = None
    plot: Annotated[
        str | None,
        typer.Option(
            callback=expanded, metavar="FILE", help="draw metrics over parameters (.png, .svg, .pdf)"
        ),
    ] = None
    yes: Yes = False
