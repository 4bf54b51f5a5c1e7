"""Where the command line writes: results to standard output, everything else to standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

__all__ = ["err", "out", "progress_bar", "stages", "status"]


def _width(console: Console) -> Console:
    if not console.is_terminal:
        console.width = max(console.width, 120)
    return console


out = _width(Console())
err = _width(Console(stderr=True))


@contextmanager
def status(text: str) -> Iterator[None]:
    """Say what is going on while it lasts; one plain line where there is no terminal."""
    if not err.is_terminal:
        err.print(text, markup=False)
        yield
        return
    with err.status(text):
        yield


@contextmanager
def progress_bar(verb: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar with rate and time left, or plain lines where there is no terminal."""
    with stages("finding sites") as stage:
        yield lambda done, total, path: stage(verb, done, total, path)


@contextmanager
def stages(begin: str) -> Iterator[Callable[[str, int, int, str], None]]:
    """One bar for work that goes through several stages, each with rate and time left; or plain lines."""
    if not err.is_terminal:
        yield _line
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    from ksurgeon.cli.rate import RateColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[path]}"),
    )
    with Progress(*columns, console=err, transient=True, speed_estimate_period=600) as progress:
        task, current = progress.add_task(begin, total=None, path=""), begin

        def show(verb: str, done: int, total: int, path: str) -> None:
            nonlocal task, current
            if verb != current:  # a rate of its own for every stage
                progress.remove_task(task)
                task, current = progress.add_task(verb, total=total, path=path), verb
            progress.update(task, description=verb, completed=done, total=total, path=path)

        yield show


def _line(verb: str, done: int, total: int, path: str) -> None:
    if path:
        print(f"{verb} {done + 1}/{total} {path}", file=sys.stderr, flush=True)
