"""What ``python -m tools.survey`` does."""

import os
from collections.abc import Sequence
from pathlib import Path

from ksurgeon.cli.console import err, out, progress_bar, status
from ksurgeon.cli.target import agree_on_file
from ksurgeon.errors import FolderError

__all__ = ["run"]


def run(
    file: Path,
    table: Path | None,
    libraries: Sequence[str],
    every: int,
    only: Sequence[str],
    convert: bool,
    workers: int | None,
    seconds: int,
    memory: float | None,
) -> None:
    for path in (file, table):
        if path is not None and not path.parent.is_dir():
            raise FolderError(f"there is no folder {path.parent} to write {path.name} in; make it first")
        if path is not None:
            agree_on_file(path, yes=True)
    from tools.survey import choose, models, page, summary, survey

    with status("listing the models"):
        tasks = choose(libraries, every, only, convert)
    try:
        with progress_bar("looking at models") as progress:
            results = survey(
                file,
                tasks,
                workers=workers,
                seconds=seconds,
                gibibytes=memory,
                again=bool(only),
                progress=progress,
            )
    except KeyboardInterrupt:
        text = f"interrupted; what was done is in {file}, and the same command goes on from there"
        err.print(text, markup=False)
        raise SystemExit(130) from None
    out.print(summary(results), markup=False, highlight=False, soft_wrap=True)
    if table is not None:
        every_model = table.with_suffix(".csv")
        _write(table, page(results, every_model.name))
        _write(every_model, models(results))


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".survey.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise FolderError(f"{path} cannot be written: {error.strerror}") from error
