"""``ksurgeon plan``."""

import json as json_module
import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast, get_args

from rich.markup import escape
from torch import nn

from ksurgeon.calibrate.harm import HarmName, is_harm
from ksurgeon.calibrate.run import Run
from ksurgeon.cli.console import err, out, stages
from ksurgeon.cli.opening import open_batches, open_on
from ksurgeon.cli.target import agree_on_file
from ksurgeon.errors import FolderError, InputError
from ksurgeon.find.inputs import ExampleInputs, as_call
from ksurgeon.models.from_function import named_function
from ksurgeon.planner import Budget, Planning
from ksurgeon.planner import plan as search
from ksurgeon.planner.options import FAMILIES
from ksurgeon.report.plan import explain_site, show_front, show_planning
from ksurgeon.rules.files import write_plan

__all__ = ["run"]

_SHARES = (0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_ERRORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def run(
    model: str,
    budget: str,
    data: str,
    output: str,
    targets: list[str],
    ignore: list[str],
    structures: list[str] | None,
    explained: list[str],
    front: bool,
    plot: str | None,
    harm: str,
    metric: str | None,
    examples: int,
    batch_size: int,
    tokenizer: str | None,
    max_length: int,
    generate: int,
    threads: int | None,
    precision: Literal["bfloat16", "int8"] | None,
    runtime: Literal["eager", "compile", "onnx"],
    weights: str,
    input_size: str | None,
    seed: int,
    device: str,
    trust_remote_code: bool,
    fresh: bool,
    json: bool,
    everything: bool,
) -> None:
    wanted = Budget.parse(budget)
    if not is_harm(harm):
        raise InputError(f"--harm {harm}: allowed: {', '.join(get_args(HarmName))}")
    _check_files(output, plot)
    measure = cast(Callable[[nn.Module], float], named_function(metric)) if metric else None
    loaded = open_on(model, weights, input_size, seed, device, trust_remote_code)
    batches = open_batches(data, loaded, examples, tokenizer, max_length, batch_size)
    values = sorted({*(_ERRORS if wanted.kind == "error" else _SHARES), wanted.value}, reverse=True)
    with stages("calibrating") as stage, warnings.catch_warnings(), _promising(fresh):
        warnings.simplefilter("ignore", UserWarning)
        planning = search(
            loaded.model,
            wanted,
            batches,
            targets=targets,
            ignore=ignore,
            structures=structures or FAMILIES,
            harm=harm,
            metric=measure,
            run=_generating(generate) if generate else None,
            threads=threads,
            precision=precision,
            runtime=runtime,
            seed=seed,
            keep=not fresh,
            stage=stage,
        )
        sites = [planning.options_of(path) for path in explained]
        others = planning.front(values, stage) if front or plot else []
    try:
        write_plan(planning.plan, output)
    except FolderError:
        show_planning(out, planning, everything=True)  # what hours of work found is not lost
        raise
    pictures = _draw(plot, planning, others)
    if json:
        print(json_module.dumps(_plain(planning, others, output), indent=1))
        return
    show_planning(out, planning, everything=everything)
    if others:
        show_front(out, planning, others)
    for options in sites:
        explain_site(out, planning, options)
    given = {
        "examples": examples,
        "tokenizer": tokenizer,
        "max-length": max_length,
        "weights": weights,
        "input-size": input_size,
        "seed": seed,
        "device": device,
    }
    defaults = {"examples": 512, "max-length": 128, "weights": "auto", "seed": 0, "device": "cpu"}
    changed = {name: value for name, value in given.items() if value != defaults.get(name)}
    command = ["ksurgeon", "convert", model, "--plan", output, "--data", data]
    command += [str(word) for name, value in changed.items() for word in (f"--{name}", value)]
    command += ["--trust-remote-code"] * trust_remote_code
    out.print(f"\n[bold]Written to {escape(', '.join([output, *pictures]))}[/]", highlight=False)
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
