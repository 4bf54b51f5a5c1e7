"""``ksurgeon convert``."""

import json as json_module
from contextlib import nullcontext
from pathlib import Path

from ksurgeon.cli.console import err, out, progress_bar, status
from ksurgeon.cli.opening import open_on
from ksurgeon.cli.target import agree_on_target
from ksurgeon.find import Finder
from ksurgeon.models.opening import LoadedModel
from ksurgeon.report.measure import measure
from ksurgeon.report.terminal import show_plan, show_record
from ksurgeon.rules.files import checked_plan, read_plan
from ksurgeon.rules.load import load_rule
from ksurgeon.rules.plan import Plan, describe_parts, make_plan, require_matches
from ksurgeon.rules.schema import Rule
from ksurgeon.surgery.convert import convert
from ksurgeon.surgery.storage import save

__all__ = ["run"]


def run(
    model: str,
    rule: str | None,
    plan: str | None,
    data: str | None,
    examples: int,
    tokenizer: str | None,
    compensate: bool,
    output: str | None,
    weights: str,
    input_size: str | None,
    seed: int,
    device: str,
    trust_remote_code: bool,
    dry_run: bool,
    json: bool,
    yes: bool,
    everything: bool,
) -> None:
    given = read_plan(plan) if plan is not None else None
    chosen = load_rule(rule) if rule is not None else None
    if dry_run:
        opened = open_on(model, weights, input_size, seed, device, trust_remote_code)
        _show_plan(opened, chosen, given, model, json)
        return
    target = agree_on_target(output or _default_folder(model, chosen.name if chosen else "plan"), yes)
    loaded = open_on(model, weights, input_size, seed, device, trust_remote_code)
    with progress_bar("fitting", "finding sites") as progress:
        conversion = convert(
            loaded.model,
            chosen or "linear",
            loaded.example_inputs,
            source=loaded.source,
            plan=given,
            data=data,
            examples=examples,
            tokenizer=tokenizer,
            compensate=compensate,
            seed=seed,
            progress=progress,
        )
    with status("measuring latency, original and converted in turns"):
        conversion.record.outcome = measure(conversion, loaded.example_inputs)
    named = loaded.source.name if loaded.source.kind == "transformers" else None
    beside = model if Path(model).is_dir() else named
    with status("copying tokenizer and processor") if beside else nullcontext():
        save(conversion.model, target, files_from=beside)
    if json:
        print(json_module.dumps({"folder": str(target), **_plain(conversion.record)}, indent=1))
        return
    show_record(out, conversion.record, everything=everything)
    out.print(
        f"\n[bold]Written to {target}[/]\n"
        f"  in Python   model = ksurgeon.load({str(target)!r})\n"
        f"  again       ksurgeon show {target}\n"
        f"  undo        ksurgeon revert {target}",
        highlight=False,
    )


def _plain(record: object) -> dict[str, object]:
    plain: dict[str, object] = record.model_dump(mode="json")  # type: ignore[attr-defined]
    return {key: value for key, value in plain.items() if key not in ("architecture", "inputs")}


def _default_folder(model: str, rule: str) -> Path:
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in model).strip("-.")
    return Path("converted") / f"{name or 'model'}-{rule}"


def _show_plan(loaded: LoadedModel, rule: Rule | None, given: Plan | None, model: str, json: bool) -> None:
    with status("running the model once and tracing its modules"):
        finder = Finder(loaded.model, loaded.example_inputs)
    if given is not None:
        plan = checked_plan(given, finder.sites)
    else:
        assert rule is not None
        plan = make_plan(finder.sites, rule)
    require_matches(plan, finder.sites)
    if json:
        print(json_module.dumps({"model": model, **plan.model_dump(mode="json")}, indent=1))
        return
    name = plan.rule if given else f"rule {plan.rule}"
    err.print(f"[bold]dry run[/]: {name} on {model}; nothing is changed or written", highlight=False)
    show_plan(out, plan, describe_parts(plan, rule))
