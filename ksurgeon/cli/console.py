"""Where the command line writes: results to standard output, everything else to standard error."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from ksurgeon.cli.streams import printable

__all__ = ["err", "out", "progress_bar", "say", "stages", "status"]


class _SafeConsole(Console):
    """A console on which text from files cannot move the cursor, change titles, or hide behind links."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
                continue
            style = segment.style
            yield Segment(printable(segment.text), style.update_link(None) if style and style.link else style)


def _width(console: Console) -> Console:
    if not console.is_terminal:
        console.width = max(console.width, 120)
    return console


out = _width(_SafeConsole())
err = _width(_SafeConsole(stderr=True))


def say(text: str) -> None:
    """A plain line to standard error, for what goes on."""
    print(printable(text), file=sys.stderr, flush=True)


@contextmanager
def status(text: str) -> Iterator[None]:
    """Say what is going on while it lasts; one plain line where there is no terminal."""
    if not err.is_terminal:
        err.print(text, markup=False)
        yield
        return
    with err.status(Text(text)):
        yield


@contextmanager
def progress_bar(verb: str, first: str | None = None) -> Iterator[Callable[[int, int, str], None]]:
    """A bar with rate and time left, or plain lines where there is no terminal.

    Until the total is known it says ``first``, or ``verb``.
    """
    with stages(first or verb) as stage:
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
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[path]}", style="dim", markup=False),
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
        say(f"{verb} {done + 1}/{total} {path}")
