"""``ksurgeon plan``."""

import json as json_module
import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, cast, get_args

from rich.markup import escape
from torch import nn

from ksurgeon.calibrate.harm import HarmName, is_harm
from ksurgeon.calibrate.run import Run
from ksurgeon.cli.commands import Convert, Plan
from ksurgeon.cli.console import err, out, stages
from ksurgeon.cli.opening import open_asked, open_batches
from ksurgeon.cli.target import agree_on_file
from ksurgeon.errors import FolderError, InputError
from ksurgeon.find.inputs import ExampleInputs, as_call
from ksurgeon.models.from_function import named_function
from ksurgeon.planner import Budget, Planning
from ksurgeon.planner import plan as search
from ksurgeon.report.plan import explain_site, show_front, show_planning
from ksurgeon.rules.files import write_plan

__all__ = ["run"]

_SHARES = (0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_HANDED_ON = ("examples", "tokenizer", "max_length", "weights", "input_size", "seed", "device")
_ERRORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def run(asked: Plan) -> None:
    wanted = Budget.parse(asked.budget)
    if not is_harm(asked.harm):
        raise InputError(f"--harm {asked.harm}: allowed: {', '.join(get_args(HarmName))}")
    _check_files(asked.output, asked.plot)
    measure = cast(Callable[[nn.Module], float], named_function(asked.metric)) if asked.metric else None
    loaded = open_asked(asked.model, asked)
    batches = open_batches(asked.data, loaded, asked, asked.batch_size)
    values = sorted({*(_ERRORS if wanted.kind == "error" else _SHARES), wanted.value}, reverse=True)
    with stages("calibrating") as stage, warnings.catch_warnings(), _promising(asked.fresh):
        warnings.simplefilter("ignore", UserWarning)
        planning = search(
            loaded.model,
            wanted,
            batches,
            targets=asked.targets or [],
            ignore=asked.ignore or [],
            structures=asked.structures or None,
            harm=asked.harm,
            metric=measure,
            run=_generating(asked.generate) if asked.generate else None,
            threads=asked.threads,
            precision=asked.precision,
            runtime=asked.runtime,
            seed=asked.seed,
            keep=not asked.fresh,
            stage=stage,
        )
        sites = [planning.options_of(path) for path in asked.explain or []]
        others = planning.front(values, stage) if asked.front or asked.plot else []
    try:
        write_plan(planning.plan, asked.output)
    except FolderError:
        show_planning(out, planning, everything=True)  # what hours of work found is not lost
        raise
    pictures = _draw(asked.plot, planning, others)
    if asked.json:
        print(json_module.dumps(_plain(planning, others, asked.output), indent=1))
        return
    show_planning(out, planning, everything=asked.all)
    if others:
        show_front(out, planning, others)
    for options in sites:
        explain_site(out, planning, options)
    defaults = {field.name: field.default for field in fields(Convert)}
    changed = {name: getattr(asked, name) for name in _HANDED_ON if getattr(asked, name) != defaults[name]}
    command = ["ksurgeon", "convert", asked.model, "--plan", asked.output, "--data", asked.data]
    for name, value in changed.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    command += ["--trust-remote-code"] * asked.trust_remote_code
    out.print(f"\n[bold]Written to {escape(', '.join([asked.output, *pictures]))}[/]", highlight=False)
    out.print(f"  carry it out  {shlex.join(command)}", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _promising(fresh: bool) -> Iterator[None]:
    """Tell who interrupts the search that it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if not fresh:
            err.print("results so far are cached: the same command continues from here")
        raise


def _check_files(output: str, plot: str | None) -> None:
    """Before the work begins."""
    agree_on_file(output, yes=True)
    if plot is not None:
        from ksurgeon.report.figures import check_picture

        check_picture(Path(plot))
        agree_on_file(plot, yes=True)


def _generating(tokens: int) -> Run:
    def run(model: nn.Module, batch: ExampleInputs) -> Any:
        if not callable(getattr(model, "generate", None)):
            raise InputError(f"--generate: {type(model).__name__} has no method generate")
        args, kwargs = as_call(batch)
        return model.generate(*args, **kwargs, max_new_tokens=tokens, do_sample=False)  # type: ignore[operator]

    return run


def _draw(plot: str | None, planning: Planning, others: list[Any]) -> list[str]:
    if plot is None:
        return []
    from ksurgeon.report.plots import draw_front, draw_sites

    first = Path(plot)
    second = first.with_name(f"{first.stem}-sites{first.suffix}")
    draw_front(planning, others, first)
    draw_sites(planning, second)
    return [str(first), str(second)]


def _plain(planning: Planning, others: list[Any], output: str) -> dict[str, Any]:
    return {
        "file": output,
        "gap": planning.gap,
        **planning.plan.model_dump(mode="json"),
        "front": [
            {"budget": str(b), "predicted_harm": p.predicted_harm, "measured_harm": p.measured_harm}
            for b, p in others
        ],
    }
