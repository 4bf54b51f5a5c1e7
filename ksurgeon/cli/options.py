"""Arguments and options that several commands share."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "ANY_MODEL",
    "AsJson",
    "Batch",
    "Data",
    "Device",
    "Epochs",
    "Everything",
    "Examples",
    "Folder",
    "InputSize",
    "MaxLength",
    "Minutes",
    "Model",
    "OptionalData",
    "Output",
    "Rate",
    "Resume",
    "Seed",
    "SetOptions",
    "SomeSeed",
    "Steps",
    "TaskName",
    "Tokenizer",
    "TrainingData",
    "TrustRemoteCode",
    "Weights",
    "Where",
    "Yes",
    "expanded",
]


def expanded(value: Any) -> Any:
    """A path that begins with ~ in full, as the shell leaves it in ``--output=~/x``; other values as is."""
    if isinstance(value, list):
        return [expanded(item) for item in value]
    if isinstance(value, (str, Path)) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))
    return value


Model = Annotated[
    str,
    typer.Argument(
        callback=expanded,
        metavar="MODEL",
        help="a timm name, torchvision:NAME, hf:ID, a local folder, or package.module:function",
        show_default=False,
    ),
]
Folder = Annotated[
    str, typer.Argument(callback=expanded, metavar="FOLDER", help="a converted model", show_default=False)
]
Weights = Annotated[
    str, typer.Option(callback=expanded, help="auto, pretrained, random, or FILE.safetensors")
]
InputSize = Annotated[
    str | None, typer.Option(help="image side (224), height x width (224x160), or length of a text or sound")
]
Seed = Annotated[int, typer.Option(help="of random weights, random starts and random inputs")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="run code that a folder, a recipe or a hub repository contains or names; read it first",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON on standard output")]
_DATA = (
    "a .txt, .jsonl, .parquet, .csv or .tsv file, a folder of images, IDX files or CIFAR's binary version, "
    "torchvision:CLASS@FOLDER, datasets:NAME, or package.module:function"
)
Data = Annotated[str, typer.Option("--data", "-d", callback=expanded, help=_DATA)]
OptionalData = Annotated[str | None, typer.Option("--data", "-d", callback=expanded, help=_DATA)]
Examples = Annotated[int, typer.Option(min=1, help="at most this many examples of the data")]
Tokenizer = Annotated[
    str | None,
    typer.Option(callback=expanded, metavar="FOLDER", help="of texts; the model's own otherwise"),
]
MaxLength = Annotated[
    int, typer.Option(min=1, help="tokens after which texts are cut, if tokenizer and model allow so many")
]
Everything = Annotated[bool, typer.Option("--all", help="print long tables in full")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="replace an earlier conversion without asking")]
Output = Annotated[
    str | None, typer.Option("--output", "-o", callback=expanded, metavar="FOLDER", help="where to write")
]

ANY_MODEL = "a converted model, or any MODEL"

# Of commands that train.
TrainingData = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        callback=expanded,
        help=_DATA,
        show_default=False,
    ),
]
Steps = Annotated[int | None, typer.Option(help="optimiser steps")]
Epochs = Annotated[float | None, typer.Option(help="passes over the data; 3 if there is no other limit")]
Minutes = Annotated[float | None, typer.Option(help="time limit; the learning-rate schedule ends with it")]
Batch = Annotated[int | None, typer.Option(help="examples of a step, over all processes")]
Rate = Annotated[float | None, typer.Option("--lr", help="peak learning rate")]
TaskName = Annotated[
    str | None,
    typer.Option(
        help="classification, regression, embedding, causal-lm, masked-lm, seq2seq; guessed if left out"
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="continue from the last checkpoint")]
Where = Annotated[str | None, typer.Option("--device", help="cpu, or what accelerate finds")]
SetOptions = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="any other setting of the training; may be repeated"),
]
SomeSeed = Annotated[int | None, typer.Option("--seed", help="of the split, the order and the training")]
