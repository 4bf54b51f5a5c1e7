"""``ksurgeon distill`` and ``ksurgeon finetune``."""

import json as json_module
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from ksurgeon.cli.commands_training import Distill, Finetune
from ksurgeon.cli.console import err, out, status
from ksurgeon.cli.target import agree_on_target
from ksurgeon.cli.training import TerminalListener, describe_stage, side_by_side
from ksurgeon.errors import FolderError, TrainingError
from ksurgeon.files import parse_toml
from ksurgeon.kernels import chosen_backend
from ksurgeon.surgery.folders import require_writable
from ksurgeon.surgery.record_file import read_record
from ksurgeon.surgery.storage import load, save
from ksurgeon.train.distill import distill, finetune
from ksurgeon.train.gradual import Gradual, distill_gradually
from ksurgeon.train.log import Listener, Stage
from ksurgeon.train.processes import end_processes, is_first_process
from ksurgeon.train.settings import make_settings
from ksurgeon.train.trained import Trained

__all__ = ["parse_settings", "run"]


_OF_SETTINGS = ("task", "steps", "epochs", "minutes", "batch", "lr", "seed")
"""Options that are settings of the training."""


def run(asked: Distill | Finetune) -> None:
    suffix = "distilled" if isinstance(asked, Distill) else "finetuned"
    target, common = _checked(asked, suffix)
    if isinstance(asked, Distill):
        trained, stages = _distilled(asked, common)
    else:
        with _saying(f"opening {asked.folder}"):
            model = load(asked.folder, trust_remote_code=asked.trust_remote_code)
        with _listening() as listener:
            trained, stages = finetune(model, asked.data, listener=listener, **common), []
    _report(trained, stages, target, asked.json)


def _checked(asked: Distill | Finetune, suffix: str) -> tuple[Path, dict[str, Any]]:
    """Where the result goes, and what the training is given, once what was asked for makes sense."""
    options = parse_settings(asked.set or [], {name: getattr(asked, name) for name in _OF_SETTINGS})
    make_settings(**options)
    chosen_backend()
    read_record(asked.folder)
    target = _target(asked.output or f"{asked.folder.rstrip('/')}-{suffix}", asked.yes or asked.resume)

    def keep(reached: Trained | Gradual) -> None:
        if is_first_process():
            save(reached.model, target)

    common = {"folder": _work(target), "resume": asked.resume, "device": asked.device, "keep": keep}
    return target, common | options


def _distilled(asked: Distill, common: dict[str, Any]) -> tuple[Trained, Sequence[Stage]]:
    from ksurgeon.train.teacher import find_teacher

    with _saying(f"opening {asked.folder} and its teacher"):
        student = load(asked.folder, trust_remote_code=asked.trust_remote_code)
        found = find_teacher(student, asked.teacher, asked.teacher_weights, asked.trust_remote_code)
    with _listening() as listener:
        common["listener"] = listener
        if not asked.gradual:
            return distill(student, found, asked.data, **common), []
        if found.warning:
            listener.note(found.warning)
        reached = distill_gradually(
            student, found, asked.data, groups=asked.gradual, tolerance=asked.tolerance, **common
        )
        return reached.trained, reached.stages


def _report(trained: Trained, stages: Sequence[Stage], target: Path, json: bool) -> None:
    if not is_first_process():
        return
    if json:
        groups = {"stages": [asdict(stage) for stage in stages]} if stages else {}
        print(json_module.dumps({"folder": str(target), **trained.to_plain(), **groups}, indent=1))
        return
    for number, stage in enumerate(stages, 1):
        out.print(f"group {number}: {describe_stage(stage)}", markup=False, highlight=False)
    before, after = trained.history[0], trained.best
    for name, evaluation in (("before", before), ("after", after)):
        if evaluation is not None:
            metrics = side_by_side(evaluation.student, evaluation.teacher)
            out.print(
                f"{name:<7} loss {evaluation.loss:.4f}{metrics and ' · ' + metrics}",
                markup=False,
                highlight=False,
            )
    if after is not None and not after.betters(before):
        out.print("training did not improve the model; it was written unchanged", highlight=False)
    for path, hardened in trained.hardened.items():
        out.print(
            f"{escape(path)} is a permutation again: {hardened.error:.3g} relative from the soft one, "
            f"{len(hardened.changed)} rows decided otherwise than by their largest entry",
            highlight=False,
        )
    if trained.broken:
        out.print(f"{len(trained.broken)} examples could not be read; the log names them", highlight=False)
    out.print(
        f"{trained.steps} steps in {trained.seconds:.0f} s, {trained.rate:.1f} examples/s; evaluations took "
        f"{trained.evaluating / max(trained.seconds, 1e-9):.0%} of the time\n"
        f"[bold]Written to {escape(str(target))}[/], the log to {escape(str(_work(target) / 'log.jsonl'))}",
        highlight=False,
    )


def parse_settings(settings: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs, values as in TOML or a bare word; ``weights.hidden=0`` goes into a table."""
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise TrainingError(f"--set {text}: expected NAME=VALUE, such as --set factor_lr=3")
        try:
            parsed = parse_toml(f"value = {value}")["value"]
        except ValueError:
            parsed = value
        table, _, key = name.strip().partition(".")
        if key:
            options.setdefault(table, {})[key] = parsed
        else:
            options[table] = parsed
    return options


def _target(folder: str, yes: bool) -> Path:
    if not is_first_process():
        return Path(folder)
    target = agree_on_target(folder, yes)
    work = _work(target)
    if work.exists() and not work.is_dir():
        raise FolderError(
            f"{work} is a file, and the checkpoints go into a folder of that name; give another -o"
        )
    require_writable(work / "checkpoints")
    return target


def _work(target: Path) -> Path:
    return target.with_name(target.name + ".training")


def _saying(text: str) -> AbstractContextManager[None]:
    return status(text) if is_first_process() else nullcontext()


@contextmanager
def _listening() -> Iterator[Listener]:
    """What is told of the training; the processes part when it is over."""
    listener = TerminalListener(err) if is_first_process() else Listener()
    try:
        yield listener
    finally:
        if isinstance(listener, TerminalListener):
            listener.close()
    end_processes()
