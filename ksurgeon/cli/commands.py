"""What every command but those that train is asked: its arguments and options, its help; imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from ksurgeon.cli.options import (
    ANY_MODEL,
    AsJson,
    Data,
    Device,
    Everything,
    Examples,
    Folder,
    InputSize,
    MaxLength,
    Model,
    OptionalData,
    Output,
    Seed,
    Tokenizer,
    TrustRemoteCode,
    Weights,
    Yes,
    expanded,
)

__all__ = ["Convert", "Diff", "Doctor", "Export", "Find", "Plan", "Revert", "Rules", "Show", "ShowRule"]


@dataclass(frozen=True)
class Find:
    """Show the linear maps in a model, and which of them can be replaced."""

    model: Model
    weights: Weights = "random"
    input_size: InputSize = None
    seed: Seed = 0
    device: Device = "cpu"
    trust_remote_code: TrustRemoteCode = False
    insertions: Annotated[
        bool, typer.Option("--insertions", help="show where a map could be inserted instead")
    ] = False
    json: AsJson = False
    all: Everything = False


@dataclass(frozen=True)
class Convert:
    """Replace linear maps as a rule or plan says, verify and measure the result, and write it to a folder.

    With --data, layers are fitted to what they do on them. The folder is converted/MODEL-RULE unless -o names
    another.
    """

    model: Model
    rule: Annotated[
        str | None,
        typer.Option(
            "--rule", "-r", callback=expanded, help="name of a built-in rule, or a rule file (.toml)"
        ),
    ] = None
    plan: Annotated[
        str | None,
        typer.Option(
            "--plan", "-p", callback=expanded, metavar="FILE", help="a plan that `ksurgeon plan` wrote"
        ),
    ] = None
    data: OptionalData = None
    examples: Examples = 512
    tokenizer: Tokenizer = None
    max_length: MaxLength = 128
    compensate: Annotated[
        bool, typer.Option(help="fit to data front to back, each layer making up for those before it")
    ] = True
    int8: Annotated[
        bool,
        typer.Option("--int8", help="quantize linear layers and 1x1 convolutions in the end, dense ones too"),
    ] = False
    fold: Annotated[
        bool, typer.Option("--fold", help="fold batch norms into the layers before them, for inference")
    ] = False
    output: Output = None
    weights: Weights = "auto"
    input_size: InputSize = None
    seed: Seed = 0
    device: Device = "cpu"
    trust_remote_code: TrustRemoteCode = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the plan, change and write nothing")] = (
        False
    )
    json: AsJson = False
    yes: Yes = False
    all: Everything = False

    def __post_init__(self) -> None:
        if (self.rule is None) == (self.plan is None):
            raise typer.BadParameter("give a rule with --rule or a plan with --plan, one of both")


@dataclass(frozen=True)
class Plan:
    """Choose for every layer what takes its place, so that a budget is met at the least harm.

    The plan is a file to read and edit; `ksurgeon convert --plan` carries it out. What is found is kept in
    the cache: an interrupted search goes on where it was, and another budget takes seconds.
    """

    model: Model
    budget: Annotated[
        str,
        typer.Option(
            "--budget",
            "-b",
            help="params=0.5 or flops=0.6 of the layers in play, latency=0.7 of the model's time here, or "
            "error=0.02 of the outputs",
        ),
    ]
    data: Data
    output: Annotated[
        str, typer.Option("--output", "-o", callback=expanded, metavar="FILE", help="the plan")
    ] = "plan.toml"
    targets: Annotated[
        list[str] | None, typer.Option("--target", help="sites in play: path, re:EXPRESSION or class name")
    ] = None
    ignore: Annotated[list[str] | None, typer.Option("--ignore", help="sites left alone, likewise")] = None
    structures: Annotated[
        list[str] | None,
        typer.Option("--structure", help="family that is tried, such as low_rank; all if left out"),
    ] = None
    explain: Annotated[
        list[str] | None, typer.Option("--explain", metavar="PATH", help="what every option of a site costs")
    ] = None
    front: Annotated[bool, typer.Option("--front", help="also the harm of other budgets, measured")] = False
    plot: Annotated[
        str | None,
        typer.Option("--plot", callback=expanded, metavar="FILE", help="pictures of it (.png or .svg)"),
    ] = None
    harm: Annotated[
        str, typer.Option(help="kl (of logits), outputs or embeddings (relative change), or auto")
    ] = "auto"
    metric: Annotated[
        str | None,
        typer.Option(help="package.module:function that gives a model's figure of merit, higher is better"),
    ] = None
    examples: Examples = 512
    batch_size: Annotated[
        int, typer.Option(min=1, help="examples of a batch of text or images; times are for one of them")
    ] = 16
    tokenizer: Tokenizer = None
    max_length: MaxLength = 128
    generate: Annotated[
        int, typer.Option(metavar="TOKENS", help="calibrate while the model generates so many tokens")
    ] = 0
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads that times are measured with; PyTorch's own number")
    ] = None
    precision: Annotated[
        Literal["bfloat16", "int8"] | None,
        typer.Option(help="that times are measured in; with int8 the converted model is quantized, too"),
    ] = None
    runtime: Annotated[
        Literal["eager", "compile", "onnx"],
        typer.Option(help="that times are measured in: PyTorch, torch.compile, or ONNX Runtime (--kernels)"),
    ] = "eager"
    weights: Weights = "auto"
    input_size: InputSize = None
    seed: Seed = 0
    device: Device = "cpu"
    trust_remote_code: TrustRemoteCode = False
    fresh: Annotated[bool, typer.Option("--fresh", help="keep nothing, use nothing that was kept")] = False
    json: AsJson = False
    all: Everything = False


@dataclass(frozen=True)
class Show:
    """Show what was done to a converted model."""

    folder: Folder
    json: AsJson = False
    all: Everything = False


@dataclass(frozen=True)
class Revert:
    """Write the model back with dense layers and its original shuffles; it computes the same.

    The folder is FOLDER-dense unless -o names another.
    """

    folder: Folder
    output: Output = None
    trust_remote_code: TrustRemoteCode = False
    yes: Yes = False
    json: AsJson = False


@dataclass(frozen=True)
class Export:
    """Write a model as a program that runs without ksurgeon, and check its outputs."""

    folder: Annotated[
        str, typer.Argument(callback=expanded, metavar="FOLDER", help=ANY_MODEL, show_default=False)
    ]
    to: Annotated[str, typer.Option("--to", help="onnx, pt2 (torch.export) or aoti (AOTInductor)")] = "onnx"
    output: Annotated[
        str | None, typer.Option("--output", "-o", callback=expanded, metavar="FILE", help="where to write")
    ] = None
    input_size: InputSize = None
    seed: Seed = 0
    trust_remote_code: TrustRemoteCode = False
    compare: Annotated[
        bool, typer.Option(help="export the dense model, too, and show sizes and latency side by side")
    ] = True
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels",
            help="for ONNX Runtime: K-layers as operators of ksurgeon's library, quantized ones in int8",
        ),
    ] = False
    json: AsJson = False
    yes: Annotated[bool, typer.Option("--yes", "-y", help="replace an earlier file without asking")] = False


@dataclass(frozen=True)
class Diff:
    """Compare two models: outputs on the same inputs, parameters, multiplications, latency in turns."""

    first: Annotated[str, typer.Argument(callback=expanded, metavar="A", help=ANY_MODEL, show_default=False)]
    second: Annotated[
        str, typer.Argument(callback=expanded, metavar="B", help="another one", show_default=False)
    ]
    weights: Weights = "auto"
    input_size: InputSize = None
    seed: Seed = 0
    device: Device = "cpu"
    trust_remote_code: TrustRemoteCode = False
    json: AsJson = False
    all: Everything = False


@dataclass(frozen=True)
class Rules:
    """List the built-in rules."""

    json: AsJson = False


@dataclass(frozen=True)
class ShowRule:
    """Print a rule file."""

    name: Annotated[str, typer.Argument(callback=expanded, metavar="NAME", help="a rule's name or file")]


@dataclass(frozen=True)
class Doctor:
    """Show versions and backends, and what is missing and what that costs."""

    json: AsJson = False
