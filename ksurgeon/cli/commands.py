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

    With --data, layers are fitted on calibration data. The folder is converted/MODEL-RULE unless -o names
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
        bool,
        typer.Option(help="with data: fit each layer to the converted network's inputs (error propagation)"),
    ] = True
    int8: Annotated[
        bool,
        typer.Option("--int8", help="quantize linear layers and 1x1 convolutions afterwards, dense ones too"),
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
    """Choose a structure for every layer, so that a budget is met with the least loss increase.

    The plan is a file to read and edit; `ksurgeon convert --plan` applies it. Results are cached: an
    interrupted search continues, and another budget takes seconds.
    """

    model: Model
    budget: Annotated[
        str,
        typer.Option(
            "--budget",
            "-b",
            help="params=0.5 or flops=0.6 of the eligible layers' parameters or FLOPs, latency=0.7 of the "
            "latency on this machine, or error=0.02: loss increase",
        ),
    ]
    data: Data
    output: Annotated[
        str, typer.Option("--output", "-o", callback=expanded, metavar="FILE", help="the plan")
    ] = "plan.toml"
    targets: Annotated[
        list[str] | None, typer.Option("--target", help="eligible sites: path, re:EXPRESSION or class name")
    ] = None
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", help="sites to leave as they are, likewise")
    ] = None
    structures: Annotated[
        list[str] | None,
        typer.Option("--structure", help="structure to try, such as low_rank; all if left out"),
    ] = None
    explain: Annotated[
        list[str] | None, typer.Option("--explain", metavar="PATH", help="what every option of a site costs")
    ] = None
    front: Annotated[
        bool, typer.Option("--front", help="also measure the trade-off curve (other budgets)")
    ] = False
    plot: Annotated[
        str | None,
        typer.Option(
            "--plot",
            callback=expanded,
            metavar="FILE",
            help="draw the trade-off curve and the layers (.png or .svg)",
        ),
    ] = None
    harm: Annotated[
        str,
        typer.Option(help="loss increase: kl (of logits), outputs or embeddings (relative error), or auto"),
    ] = "auto"
    metric: Annotated[
        str | None,
        typer.Option(help="package.module:function that returns a model's score, higher is better"),
    ] = None
    examples: Examples = 512
    batch_size: Annotated[
        int, typer.Option(min=1, help="examples of a batch of text or images; latency is for one batch")
    ] = 16
    tokenizer: Tokenizer = None
    max_length: MaxLength = 128
    generate: Annotated[
        int, typer.Option(metavar="TOKENS", help="calibrate while the model generates this many tokens")
    ] = 0
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads for latency; PyTorch's number if left out")
    ] = None
    precision: Annotated[
        Literal["bfloat16", "int8"] | None,
        typer.Option(help="of the latency; with int8 the converted model is quantized as well"),
    ] = None
    runtime: Annotated[
        Literal["eager", "compile", "onnx"],
        typer.Option(help="of the latency: PyTorch, torch.compile, or ONNX Runtime (--kernels)"),
    ] = "eager"
    weights: Weights = "auto"
    input_size: InputSize = None
    seed: Seed = 0
    device: Device = "cpu"
    trust_remote_code: TrustRemoteCode = False
    fresh: Annotated[bool, typer.Option("--fresh", help="ignore the cache and do not write to it")] = False
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
        bool, typer.Option(help="also export the dense model, and compare size and latency")
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
    """Compare two models: outputs on the same inputs, parameters, multiplications, interleaved latency."""

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
