"""Where ``ksurgeon`` begins: the arguments are carried out, and what goes wrong is said in one line."""

import os
import sys
import traceback
from typing import Any

import typer

from ksurgeon.cli.app import app
from ksurgeon.cli.console import err
from ksurgeon.errors import KsurgeonError

__all__ = ["main"]


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
