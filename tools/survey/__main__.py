"""The command line of ``python -m tools.survey``."""

from pathlib import Path
from typing import Annotated

import typer

from ksurgeon.cli.entry_point import main
from ksurgeon.cli.options import expanded

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def survey(
    json: Annotated[
        Path,
        typer.Option(
            callback=expanded,
            metavar="FILE",
            help="results, one line a model; those it has are not looked at again",
        ),
    ],
    table: Annotated[
        Path | None,
        typer.Option(callback=expanded, metavar="FILE.md", help="write them as a page, too, and FILE.csv"),
    ] = None,
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
    from tools.survey.command import run

    run(json, table, library or (), every, only or (), convert, workers, seconds, memory)


if __name__ == "__main__":
    main(app, "python -m tools.survey")
