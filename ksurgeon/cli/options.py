"""Arguments and options that several commands share."""

from typing import Annotated

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
]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="a timm name, torchvision:NAME, hf:ID, a local folder, or package.module:function",
        show_default=False,
    ),
]
Folder = Annotated[str, typer.Argument(metavar="FOLDER", help="a converted model", show_default=False)]
Weights = Annotated[str, typer.Option(help="auto, pretrained, random, or FILE.safetensors")]
InputSize = Annotated[
    str | None, typer.Option(help="image side (224), height x width (224x160), or length of a text or sound")
]
Seed = Annotated[int, typer.Option(help="of random weights, random starts and random inputs")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="run model code that lies in a repository of the hub")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON on standard output")]
_DATA = "a text file, a folder of images, or package.module:function that gives batches"
Data = Annotated[str, typer.Option("--data", "-d", help=_DATA)]
OptionalData = Annotated[str | None, typer.Option("--data", "-d", help=_DATA)]
Examples = Annotated[int, typer.Option(min=1, help="examples of the data that are used at most")]
Tokenizer = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="of a text file; the model's own otherwise")
]
Everything = Annotated[bool, typer.Option("--all", help="long tables in full")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="replace an earlier conversion without asking")]
Output = Annotated[str | None, typer.Option("--output", "-o", metavar="FOLDER", help="where to write")]

ANY_MODEL = "a converted model, or any MODEL"

# Of commands that train.
TrainingData = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        help="a .txt, .jsonl, .parquet, .csv or .tsv file, a folder of pictures, torchvision:CLASS@FOLDER, "
        "datasets:NAME, or package.module:function",
        show_default=False,
    ),
]
Steps = Annotated[int | None, typer.Option(help="optimiser steps")]
Epochs = Annotated[float | None, typer.Option(help="passes over the data; 3 where nothing else limits it")]
Minutes = Annotated[float | None, typer.Option(help="end, with the learning rate decayed, after so long")]
Batch = Annotated[int | None, typer.Option(help="examples of a step, over all processes")]
Rate = Annotated[float | None, typer.Option("--lr", help="peak learning rate")]
TaskName = Annotated[
    str | None,
    typer.Option(help="classification, regression, embedding, causal-lm, masked-lm, seq2seq; else found out"),
]
Resume = Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")]
Where = Annotated[str | None, typer.Option("--device", help="cpu, or what accelerate finds")]
SetOptions = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="any other setting of the training; may be repeated"),
]
SomeSeed = Annotated[int | None, typer.Option("--seed", help="of the split, the order and the training")]
