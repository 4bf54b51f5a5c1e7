"""``ksurgeon distill`` and ``ksurgeon finetune``."""

import json as json_module
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ksurgeon.cli.console import err, out, status
from ksurgeon.cli.target import agree_on_target
from ksurgeon.cli.training import TerminalListener, side_by_side
from ksurgeon.errors import FolderError, TrainingError
from ksurgeon.surgery.record_file import read_record
from ksurgeon.surgery.storage import load, save
from ksurgeon.train.distill import Trained, distill, finetune
from ksurgeon.train.gradual import distill_gradually
from ksurgeon.train.log import Listener
from ksurgeon.train.settings import make_settings

__all__ = ["Request", "parse_settings", "run_distill", "run_finetune"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What every training is asked for; ``given`` are the settings that have an option of their own."""

    folder: str
    data: str
    output: str | None
    resume: bool
    device: str | None
    settings: Sequence[str]
    given: Mapping[str, Any]
    json: bool
    yes: bool

    def checked(self, suffix: str) -> tuple[dict[str, Any], Path]:
        """All settings, and the folder to write, once it is known that the training can begin."""
        options = parse_settings(self.settings, self.given)
        make_settings(**options)
        read_record(self.folder)
        target = _target(self.output or f"{self.folder.rstrip('/')}-{suffix}", self.yes or self.resume)
        return options, target


def run_distill(
    asked: Request,
    teacher: str | None,
    teacher_weights: str | None,
    gradual: int,
    tolerance: float | None,
) -> None:
    from ksurgeon.train.teacher import find_teacher

    options, target = asked.checked("distilled")
    with status(f"opening {asked.folder} and its teacher"):
        student = load(asked.folder)
        found = find_teacher(student, teacher, teacher_weights)
    with _listening() as listener:
        common: dict[str, Any] = {"device": asked.device, "listener": listener, **options}
        if gradual:
            if asked.resume:
                raise TrainingError("--resume goes with a training of the whole, not with --gradual")
            if found.warning:
                listener.note(found.warning)
            reached = distill_gradually(
                student, found.model, asked.data, groups=gradual, tolerance=tolerance, **common
            )
            trained = reached.trained
        else:
            trained = distill(student, found, asked.data, folder=_work(target), resume=asked.resume, **common)
    _finish(trained, target, asked.json)


def run_finetune(asked: Request) -> None:
    options, target = asked.checked("finetuned")
    with status(f"opening {asked.folder}"):
        model = load(asked.folder)
    with _listening() as listener:
        trained = finetune(
            model,
            asked.data,
            folder=_work(target),
            resume=asked.resume,
            device=asked.device,
            listener=listener,
            **options,
        )
    _finish(trained, target, asked.json)


def _finish(trained: Trained, target: Path, json: bool) -> None:
    if not _is_first_process():
        return
    save(trained.model, target)
    if json:
        print(json_module.dumps({"folder": str(target), **_plain(trained)}, indent=1))
        return
    for name, evaluation in (("before", next(iter(trained.history), None)), ("after", trained.best)):
        if evaluation is not None:
            metrics = side_by_side(evaluation.student, evaluation.teacher)
            out.print(f"{name:<7} loss {evaluation.loss:.4f}{metrics and ' · ' + metrics}", highlight=False)
    for path, hardened in trained.hardened.items():
        out.print(
            f"{path} is a permutation again: {hardened.error:.3g} relative from the soft one, "
            f"{len(hardened.changed)} rows decided otherwise than by their largest entry",
            highlight=False,
        )
    if trained.broken:
        out.print(f"{len(trained.broken)} examples could not be read; the log names them", highlight=False)
    out.print(
        f"{trained.steps} steps in {trained.seconds:.0f} s, {trained.rate:.1f} examples/s\n"
        f"[bold]Written to {target}[/], the log to {_work(target) / 'log.jsonl'}",
        highlight=False,
    )


def _plain(trained: Trained) -> dict[str, Any]:
    return {
        "steps": trained.steps,
        "seconds": trained.seconds,
        "rate": trained.rate,
        "history": [asdict(evaluation) for evaluation in trained.history],
        "layers": [asdict(layer) for layer in trained.layers],
        "hardened": {path: asdict(hardened) for path, hardened in trained.hardened.items()},
        "broken": trained.broken,
    }


def parse_settings(settings: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs, values as in TOML or a bare word; ``weights.hidden=0`` goes into a table."""
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise TrainingError(f"--set {text}: expected NAME=VALUE, such as --set factor_lr=3")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value
        table, _, key = name.strip().partition(".")
        if key:
            options.setdefault(table, {})[key] = parsed
        else:
            options[table] = parsed
    return options


def _target(folder: str, yes: bool) -> Path:
    if not _is_first_process():
        return Path(folder)
    target = agree_on_target(folder, yes)
    work = _work(target)
    if work.exists() and not work.is_dir():
        raise FolderError(
            f"{work} is a file, and the checkpoints go into a folder of that name; give another -o"
        )
    return target


def _work(target: Path) -> Path:
    return target.with_name(target.name + ".training")


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _listening() -> Iterator[Listener]:
    if not _is_first_process():
        yield Listener()
        return
    listener = TerminalListener(err)
    try:
        yield listener
    finally:
        listener.close()
