"""Where ``ksurgeon`` begins: the arguments are carried out, and what goes wrong is said in one line."""

import errno
import io
import os
import signal
import sys
import traceback
from typing import Any

import typer
from rich.text import Text

from ksurgeon.cli.app import app
from ksurgeon.cli.console import err
from ksurgeon.cli.interrupts import Interrupts
from ksurgeon.cli.streams import prepare_streams
from ksurgeon.errors import KsurgeonError

__all__ = ["main"]


def main(app: typer.Typer = app, name: str = "ksurgeon") -> None:
    """Run a command line; errors are one message and an exit status, tracebacks only with --debug."""
    prepare_streams()
    with Interrupts() as interrupts:
        _run(app, name, interrupts)


def _run(app: typer.Typer, name: str, interrupts: Interrupts) -> None:
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        status: Any = app(arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()  # here, where it can be said that this failed
    except KeyboardInterrupt:
        _interrupted(interrupts, debug)
    except typer.Abort:
        if interrupts.number is not None:
            _interrupted(interrupts, debug)
        _fail("stopped; nothing was written", debug, 130)
    except KsurgeonError as error:
        _fail(str(error), debug, error.exit_status)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # wrong usage, said by click
            usage = io.StringIO()
            error.show(usage)  # type: ignore[attr-defined]
            err.print(Text(usage.getvalue().rstrip()), soft_wrap=True)
            sys.exit(error.exit_code)
        if isinstance(error, OSError) and (failure := _failure_of_output()):
            if failure.errno == errno.EPIPE:
                sys.exit(141)
            _fail(f"standard output cannot be written: {failure.strerror}", debug, 1)
        lines = str(error).strip().splitlines()
        if _is_out_of_memory(error):
            what = f" ({lines[0]})" if lines else ""
            _fail(
                f"out of memory{what}; end other programs, lift a limit on this one (ulimit -v), or give a "
                "smaller model, input size or batch",
                debug,
                1,
            )
        _fail(
            f"unexpected {type(error).__name__}: {lines[0] if lines else 'no message'}; "
            "run again with --debug for the traceback, and please report it",
            debug,
            70,
        )
    if status == 130:  # the library that reads the arguments catches the interrupt first
        _interrupted(interrupts, debug)
    sys.exit(status if isinstance(status, int) else 0)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, PyTorch on a CPU or on another device, or a library's import had no memory left."""
    kinds = {cls.__name__ for cls in type(error).__mro__}
    lacks = ("DefaultCPUAllocator", "Cannot allocate memory", "failed to map segment")
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or any(lack in str(error) for lack in lacks)


def _failure_of_output() -> OSError | None:
    """Why standard output takes no more, if so; nothing is written to it from then on."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _interrupted(interrupts: Interrupts, debug: bool) -> None:
    number = interrupts.number or signal.SIGINT
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    _fail(f"interrupted{by}; nothing was written", debug, 128 + number)


def _fail(message: str, debug: bool, status: int) -> None:
    if debug:
        err.print(Text(traceback.format_exc()), soft_wrap=True)
    err.print(Text.assemble(("error:", "bold red"), " ", message), highlight=False)
    sys.exit(status)
