"""Where a command may write: asked before the work begins, not after."""

import sys
from pathlib import Path

import typer

from ksurgeon.cli.console import err
from ksurgeon.errors import FolderError
from ksurgeon.surgery.storage import check_target

__all__ = ["agree_on_target"]


def agree_on_target(folder: str | Path, yes: bool) -> Path:
    """The folder, once the user agrees that an earlier conversion there is replaced.

    Raises:
        FolderError: it holds something else, or nobody can be asked.
    """
    target = check_target(folder)
    if yes or not target.exists() or not any(target.iterdir()):
        return target
    if not sys.stdin.isatty():
        raise FolderError(
            f"{target} holds an earlier conversion; give --yes to replace it, or another folder with -o"
        )
    err.print(f"{target} holds an earlier conversion.")
    if not typer.confirm("Replace it?", err=True):
        raise typer.Abort
    return target
