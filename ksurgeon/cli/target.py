"""Where a command may write: asked before the work begins, not after."""

import sys
from pathlib import Path

import typer

from ksurgeon.cli.console import err
from ksurgeon.errors import FolderError
from ksurgeon.surgery.folders import require_writable
from ksurgeon.surgery.storage import check_target

__all__ = ["agree_on_file", "agree_on_target"]


def agree_on_target(folder: str | Path, yes: bool) -> Path:
    """The folder, once the user agrees that an earlier conversion there is replaced.

    Raises:
        FolderError: it holds something else, cannot be written, or nobody can be asked.
    """
    target = check_target(folder)
    if not yes and target.exists() and any(target.iterdir()):
        _confirm(f"{target} holds an earlier conversion", "folder")
    return target


def agree_on_file(file: str | Path, yes: bool) -> Path:
    """The file, once the user agrees that what is there is replaced.

    Raises:
        FolderError: it is a folder, cannot be written, or nobody can be asked.
    """
    target = Path(file)
    require_writable(target)
    if target.is_dir():
        raise FolderError(f"{target} is a folder; give a file with -o")
    if not yes and target.exists():
        _confirm(f"{target} exists already", "file")
    return target


def _confirm(what: str, kind: str) -> None:
    if not sys.stdin.isatty():
        raise FolderError(f"{what}; give --yes to replace it, or another {kind} with -o")
    err.print(f"{what}.", markup=False)
    if not typer.confirm("Replace it?", err=True):
        raise typer.Abort
