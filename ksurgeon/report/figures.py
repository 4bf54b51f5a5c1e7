"""Pictures by matplotlib, which is asked for only when one is drawn."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ksurgeon.errors import FolderError, InputError

__all__ = ["BLUE", "COLOURS", "GREY", "RED", "can_draw", "check_picture", "new_figure", "write_figure"]

COLOURS = ("#2f6f9f", "#c0504d", "#6a994e", "#b07aa1", "#d98c21", "#555555")
BLUE, RED, GREY = "#2f6f9f", "#c0504d", "#8a8a8a"
_KINDS = (".png", ".svg", ".pdf")


def check_picture(file: Path) -> None:
    """Return if a picture can be drawn to this file, before the work that it shows.

    Raises:
        InputError: its name has another ending, it is a folder, or matplotlib is not installed.
    """
    if file.suffix not in _KINDS or file.is_dir():
        raise InputError(f"{file}: unsupported image format; use {', '.join(_KINDS)}")
    _matplotlib()


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def _matplotlib() -> Any:
    try:
        from matplotlib import figure
    except ImportError as error:
        raise InputError("images need matplotlib, which is not installed: pip install matplotlib") from error
    return figure


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """A figure of that size in inches, and its axes beside each other.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = _matplotlib().Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def write_figure(figure: Any, file: Path) -> None:
    """Write a figure in the format that the file's name ends in.

    Raises:
        FolderError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise FolderError(f"{file} cannot be written: {error.strerror}") from error
