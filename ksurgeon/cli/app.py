"""The commands' front door: arguments, help, errors. Work begins, and torch is imported, inside them."""

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from ksurgeon.cli.console import err
from ksurgeon.errors import KsurgeonError

__all__ = ["app", "main"]

app = typer.Typer(
    name="ksurgeon",
    help="Find linear maps in PyTorch models and put K-matrices in their place.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
rules_app = typer.Typer(help="List the built-in rules, or show one.", invoke_without_command=True)
app.add_typer(rules_app, name="rules")

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
DataName = Annotated[str | None, typer.Option("--data", "-d", help=_DATA)]
Examples = Annotated[int, typer.Option(min=1, help="examples of the data that are used at most")]
Tokenizer = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="of a text file; the model's own otherwise")
]
Everything = Annotated[bool, typer.Option("--all", help="long tables in full")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="replace an earlier conversion without asking")]
Output = Annotated[str | None, typer.Option("--output", "-o", metavar="FOLDER", help="where to write")]

ANY_MODEL = "a converted model, or any MODEL"


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks; may stand anywhere")] = False,
) -> None:
    pass


@app.command()
def find(
    model: Model,
    weights: Weights = "random",
    input_size: InputSize = None,
    seed: Seed = 0,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    json: AsJson = False,
    all: Everything = False,
) -> None:
    """Show the linear maps in a model, and which of them can be replaced."""
    from ksurgeon.cli.find import run

    run(model, weights, input_size, seed, device, trust_remote_code, json, all)


@app.command()
def convert(
    model: Model,
    rule: Annotated[
        str | None, typer.Option("--rule", "-r", help="name of a built-in rule, or a rule file (.toml)")
    ] = None,
    plan: Annotated[
        str | None, typer.Option("--plan", "-p", metavar="FILE", help="a plan that `ksurgeon plan` wrote")
    ] = None,
    data: DataName = None,
    examples: Examples = 512,
    tokenizer: Tokenizer = None,
    compensate: Annotated[
        bool, typer.Option(help="fit to data front to back, each layer making up for those before it")
    ] = True,
    output: Output = None,
    weights: Weights = "auto",
    input_size: InputSize = None,
    seed: Seed = 0,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show the plan, change and write nothing")
    ] = False,
    json: AsJson = False,
    yes: Yes = False,
    all: Everything = False,
) -> None:
    """Replace linear maps as a rule or plan says, verify and measure the result, and write it to a folder.

    With --data, layers are fitted to what they do on them. The folder is converted/MODEL-RULE unless -o names
    another.
    """
    if (rule is None) == (plan is None):
        raise typer.BadParameter("give a rule with --rule or a plan with --plan, one of both")
    from ksurgeon.cli.convert import run

    run(
        model, rule, plan, data, examples, tokenizer, compensate, output, weights, input_size, seed, device,
        trust_remote_code, dry_run, json, yes, all,
    )  # fmt: skip


@app.command()
def plan(
    model: Model,
    budget: Annotated[
        str,
        typer.Option(
            "--budget",
            "-b",
            help="params=0.5 or flops=0.6 of the layers in play, latency=0.7 of the model's time here, or "
            "error=0.02 of the outputs",
        ),
    ],
    data: Annotated[str, typer.Option("--data", "-d", help=_DATA)],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="the plan")] = "plan.toml",
    targets: Annotated[
        list[str] | None, typer.Option("--target", help="sites in play: path, re:EXPRESSION or class name")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option("--ignore", help="sites left alone, likewise")] = None,
    structures: Annotated[
        list[str] | None,
        typer.Option("--structure", help="family that is tried, such as low_rank; all if left out"),
    ] = None,
    explain: Annotated[
        list[str] | None, typer.Option("--explain", metavar="PATH", help="what every option of a site costs")
    ] = None,
    front: Annotated[bool, typer.Option("--front", help="also the harm of other budgets, measured")] = False,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="pictures of it (.png or .svg)")
    ] = None,
    harm: Annotated[
        str, typer.Option(help="kl (of logits), outputs or embeddings (relative change), or auto")
    ] = "auto",
    metric: Annotated[
        str | None,
        typer.Option(help="package.module:function that gives a model's figure of merit, higher is better"),
    ] = None,
    examples: Examples = 512,
    batch_size: Annotated[
        int, typer.Option(min=1, help="examples of a batch of text or images; times are for one of them")
    ] = 16,
    tokenizer: Tokenizer = None,
    generate: Annotated[
        int, typer.Option(metavar="TOKENS", help="calibrate while the model generates so many tokens")
    ] = 0,
    weights: Weights = "auto",
    seed: Seed = 0,
    device: Device = "cpu",
    fresh: Annotated[bool, typer.Option("--fresh", help="keep nothing, use nothing that was kept")] = False,
    json: AsJson = False,
    all: Everything = False,
) -> None:
    """Choose for every layer what takes its place, so that a budget is met at the least harm.

    The plan is a file to read and edit; `ksurgeon convert --plan` carries it out. What is found is kept in
    the cache: an interrupted search goes on where it was, and another budget takes seconds.
    """
    from ksurgeon.cli.plan import run

    run(
        model, budget, data, output, targets or [], ignore or [], structures, explain or [], front, plot,
        harm, metric, examples, batch_size, tokenizer, generate, weights, seed, device, fresh, json, all,
    )  # fmt: skip


Data = Annotated[
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


@app.command()
def distill(
    folder: Folder,
    data: Data,
    teacher: Annotated[
        str | None, typer.Option(help="a model as any command takes it; else what FOLDER was made from")
    ] = None,
    teacher_weights: Annotated[str | None, typer.Option(help="auto, pretrained, or FILE.safetensors")] = None,
    task: TaskName = None,
    steps: Steps = None,
    epochs: Epochs = None,
    minutes: Minutes = None,
    batch: Batch = None,
    lr: Rate = None,
    gradual: Annotated[int, typer.Option(help="operate in so many groups, healing after each")] = 0,
    tolerance: Annotated[
        float | None, typer.Option(help="with --gradual: stop before a held-out metric falls by more")
    ] = None,
    output: Output = None,
    resume: Resume = False,
    device: Where = None,
    seed: SomeSeed = None,
    set: SetOptions = None,
    json: AsJson = False,
    yes: Yes = False,
) -> None:
    """Let a converted model learn from its original, on data that needs no labels.

    The folder is FOLDER-distilled unless -o names another; checkpoints and log lie beside it.
    """
    from ksurgeon.cli.train import run_distill

    given = {"task": task, "steps": steps, "epochs": epochs, "minutes": minutes, "batch": batch, "lr": lr}
    given["seed"] = seed
    run_distill(
        folder,
        data,
        teacher,
        teacher_weights,
        gradual,
        tolerance,
        output,
        resume,
        device,
        set or [],
        given,
        json,
        yes,
    )


@app.command()
def finetune(
    folder: Folder,
    data: Data,
    task: TaskName = None,
    steps: Steps = None,
    epochs: Epochs = None,
    minutes: Minutes = None,
    batch: Batch = None,
    lr: Rate = None,
    output: Output = None,
    resume: Resume = False,
    device: Where = None,
    seed: SomeSeed = None,
    set: SetOptions = None,
    json: AsJson = False,
    yes: Yes = False,
) -> None:
    """Train a converted model on labels, without a teacher.

    The folder is FOLDER-finetuned unless -o names another; checkpoints and log lie beside it.
    """
    from ksurgeon.cli.train import run_finetune

    given = {"task": task, "steps": steps, "epochs": epochs, "minutes": minutes, "batch": batch, "lr": lr}
    given["seed"] = seed
    run_finetune(folder, data, output, resume, device, set or [], given, json, yes)


@app.command("run")
def run_recipe(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="a recipe file (.toml)", show_default=False)
    ],
    output: Output = None,
    minutes: Annotated[float | None, typer.Option(help="of training, in place of the recipe's")] = None,
    only: Annotated[list[str] | None, typer.Option(help="of the recipe's variants, only this one")] = None,
    resume: Resume = False,
    set: SetOptions = None,
    yes: Yes = False,
) -> None:
    """Carry out a whole experiment: surgery, distillation and evaluation, written to a results file.

    The folder is runs/NAME unless -o names another.
    """
    from ksurgeon.cli.run import run

    run(recipe, output, minutes, only or [], resume, set or [], yes)


@app.command()
def show(folder: Folder, json: AsJson = False, all: Everything = False) -> None:
    """Show what was done to a converted model."""
    from ksurgeon.cli.show import run

    run(folder, json, all)


@app.command()
def revert(folder: Folder, output: Output = None, yes: Yes = False, json: AsJson = False) -> None:
    """Write the model back with dense layers and its original shuffles; it computes the same.

    The folder is FOLDER-dense unless -o names another.
    """
    from ksurgeon.cli.revert import run

    run(folder, output, yes, json)


@app.command()
def export(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help=ANY_MODEL, show_default=False)],
    to: Annotated[str, typer.Option("--to", help="onnx, pt2 (torch.export) or aoti (AOTInductor)")] = "onnx",
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="where to write")
    ] = None,
    input_size: InputSize = None,
    seed: Seed = 0,
    compare: Annotated[
        bool, typer.Option(help="export the dense model, too, and show sizes and latency side by side")
    ] = True,
    json: AsJson = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="replace an earlier file without asking")] = False,
) -> None:
    """Write a model as a program that runs without ksurgeon, and check its outputs."""
    from ksurgeon.cli.export import run

    run(folder, to, output, input_size, seed, compare, json, yes)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help=ANY_MODEL, show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help="another one", show_default=False)],
    weights: Weights = "auto",
    input_size: InputSize = None,
    seed: Seed = 0,
    device: Device = "cpu",
    json: AsJson = False,
    all: Everything = False,
) -> None:
    """Compare two models: outputs on the same inputs, parameters, multiplications, latency in turns."""
    from ksurgeon.cli.diff import run

    run(first, second, weights, input_size, seed, device, json, all)


@rules_app.callback()
def rules(context: typer.Context, json: AsJson = False) -> None:
    """List the built-in rules."""
    if context.invoked_subcommand is None:
        from ksurgeon.cli.rules import list_rules

        list_rules(json)


@rules_app.command("show")
def show_rule(name: Annotated[str, typer.Argument(metavar="NAME", help="a rule's name or file")]) -> None:
    """Print a rule file."""
    from ksurgeon.cli.rules import print_rule

    print_rule(name)


@app.command()
def survey(
    json: Annotated[
        Path,
        typer.Option(metavar="FILE", help="results, one line a model; those it has are not looked at again"),
    ],
    table: Annotated[Path | None, typer.Option(metavar="FILE.md", help="write them as a page, too")] = None,
    library: Annotated[
        list[str] | None, typer.Option(help="timm, torchvision or transformers; may be given again")
    ] = None,
    every: Annotated[int, typer.Option(min=1, metavar="N", help="every N-th model only")] = 1,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="these models only, also if they failed before; patterns such as swin* do"
        ),
    ] = None,
    convert: Annotated[
        bool, typer.Option("--convert", help="convert each exactly, save, load and revert it, too")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes, one thread each; as many as processors if not given")
    ] = None,
    seconds: Annotated[int, typer.Option(min=1, help="CPU time for one model")] = 120,
    memory: Annotated[
        float | None, typer.Option(min=0.5, help="GiB for one process; an equal share if not given")
    ] = None,
) -> None:
    """Look for linear maps in whole libraries of models, and for those that the finder misses."""
    from ksurgeon.cli.survey import run

    run(json, table, library or (), every, only or (), convert, workers, seconds, memory)


@app.command()
def doctor(json: AsJson = False) -> None:
    """Show versions and backends, and what is missing and what that costs."""
    from ksurgeon.cli.doctor import run

    run(json)


def main() -> None:
    """Run the command line; errors are one message and an exit status, tracebacks only with --debug."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        status: Any = app(arguments, prog_name="ksurgeon", standalone_mode=False)
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written", debug, 130)
    except typer.Abort:
        _fail("stopped; nothing was written", debug, 130)
    except KsurgeonError as error:
        _fail(str(error), debug, error.exit_status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # wrong usage, said by click
            error.show()  # type: ignore[attr-defined]
            sys.exit(error.exit_code)
        lines = str(error).strip().splitlines()
        _fail(
            f"unexpected {type(error).__name__}: {lines[0] if lines else 'no message'}; "
            "run again with --debug for the traceback, and please report it",
            debug,
            70,
        )
    if status == 130:  # the library that reads the arguments catches the interrupt first
        _fail("interrupted; nothing was written", debug, 130)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, debug: bool, status: int) -> None:
    if debug:
        traceback.print_exc()
    err.print("[bold red]error:[/] ", end="")
    err.print(message, markup=False, highlight=False)
    sys.exit(status)
