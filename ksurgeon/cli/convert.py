"""``ksurgeon convert``."""

import json as json_module
import shlex
import warnings
from contextlib import nullcontext
from pathlib import Path

from rich.markup import escape
from torch import nn

from ksurgeon.cli.commands import Convert
from ksurgeon.cli.console import err, out, progress_bar, status
from ksurgeon.cli.opening import open_asked, open_batches
from ksurgeon.cli.target import agree_on_target
from ksurgeon.find import Finder
from ksurgeon.find.inputs import ExampleInputs
from ksurgeon.report.measure import measure
from ksurgeon.report.terminal import show_plan, show_record
from ksurgeon.rules.files import checked_plan, read_plan
from ksurgeon.rules.load import load_rule
from ksurgeon.rules.plan import Plan, describe_parts, make_plan, require_matches
from ksurgeon.rules.schema import Rule
from ksurgeon.surgery.convert import convert
from ksurgeon.surgery.record_file import read_record
from ksurgeon.surgery.storage import save

__all__ = ["run"]


def run(asked: Convert) -> None:
    given = read_plan(asked.plan) if asked.plan is not None else None
    chosen = load_rule(asked.rule) if asked.rule is not None else None
    target = asked.output or _default_folder(asked.model, chosen.name if chosen else "plan")
    if not asked.dry_run:
        target = agree_on_target(target, asked.yes)
    loaded = open_asked(asked.model, asked)
    batches = open_batches(asked.data, loaded, asked) if asked.data is not None else None
    example_inputs = (
        batches.example if batches is not None and loaded.guesses else loaded.example_inputs
    )  # data of the user's are a better guess
    if asked.dry_run:
        _show_plan(loaded.model, example_inputs, chosen, given, asked.model, asked.json)
        return
    with progress_bar("fitting", "finding sites") as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*matches nothing", UserWarning)  # the report says it
        conversion = convert(
            loaded.model,
            given or chosen or "linear",
            example_inputs,
            source=loaded.source,
            data=batches,
            compensate=asked.compensate,
            weights="int8" if asked.int8 else None,
            fold=asked.fold,
            seed=asked.seed,
            progress=progress,
        )
    with status("measuring latency, original and converted interleaved"):
        conversion.record.outcome = measure(conversion, example_inputs)
    named = loaded.source.name if loaded.source.kind == "transformers" else None
    beside = asked.model if Path(asked.model).is_dir() else named
    with status("copying tokenizer and processor") if beside else nullcontext():
        written = read_record(save(conversion.model, target, files_from=beside))
    if asked.json:
        print(json_module.dumps({"folder": str(target), **_plain(written)}, indent=1))
        return
    show_record(out, conversion.record, everything=asked.all)
    place, sourced = escape(str(target)), written.source is not None
    own = written.source is not None and written.source.code is not None
    folder = escape(shlex.quote(str(target)))
    leave, argument = (" --trust-remote-code", ", trust_remote_code=True") if own else ("", "")
    called = f"ksurgeon.load({str(target)!r}{argument if sourced else ', model=…'})"
    out.print(
        f"\n[bold]Written to {place}[/]\n"
        f"  in Python   model = {escape(called)}\n"
        f"  again       ksurgeon show {folder}\n"
        + (
            f"  undo        ksurgeon revert {folder}{leave}"
            if sourced
            else "  undo        ksurgeon.revert(model) once it is loaded; the command cannot, as the record "
            "does not say how the architecture is built"
        ),
        highlight=False,
    )


def _plain(record: object) -> dict[str, object]:
    plain: dict[str, object] = record.model_dump(mode="json")  # type: ignore[attr-defined]
    return {key: value for key, value in plain.items() if key not in ("architecture", "inputs")}


def _default_folder(model: str, rule: str) -> Path:
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in model).strip("-.")
    return Path("converted") / f"{name or 'model'}-{rule}"


def _show_plan(
    model: nn.Module,
    example_inputs: ExampleInputs,
    rule: Rule | None,
    given: Plan | None,
    name: str,
    json: bool,
) -> None:
    with status("running the model once and tracing its modules"):
        finder = Finder(model, example_inputs)
    if given is not None:
        plan = checked_plan(given, finder.all_sites)
    else:
        assert rule is not None
        plan = make_plan(finder.all_sites, rule)
    require_matches(plan, finder.sites)
    if json:
        print(json_module.dumps({"model": name, **plan.model_dump(mode="json")}, indent=1))
        return
    what = plan.rule if given else f"rule {plan.rule}"
    err.print(
        f"[bold]dry run[/]: {escape(what)} on {escape(name)}; nothing is changed or written", highlight=False
    )
    show_plan(out, plan, describe_parts(plan, rule))
