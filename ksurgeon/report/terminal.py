"""The report on the terminal, drawn from a record alone, so that it can be shown again later."""

from statistics import median

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ksurgeon.find.site import Site
from ksurgeon.kmatrix.structures import (
    Butterfly,
    Chain,
    GroupedKaleidoscope,
    Kaleidoscope,
    Structure,
    Sum,
)
from ksurgeon.rules.plan import Plan
from ksurgeon.site_kinds import site_kind
from ksurgeon.surgery.record import Operation, Outcome, Record, Training

__all__ = [
    "new_table",
    "show_error",
    "show_insertions",
    "show_plan",
    "show_record",
    "show_sites",
    "totals_table",
    "warn",
]

_ROWS = 40


def warn(console: Console, message: str, title: str = "warning") -> None:
    """A warning that nobody can miss."""
    console.print(Panel(Text(message), title=title, border_style="bold red", title_align="left"))


def show_record(console: Console, record: Record, *, everything: bool = False) -> None:
    """What was found, what was replaced by what, and what it did to the model."""
    for warning in record.warnings:
        warn(console, warning, "RANDOM WEIGHTS" if "RANDOM" in warning else "warning")
    name = f"{record.source.name} ({record.source.kind})" if record.source else "model of unknown source"
    console.rule(f"[bold]{escape(name)}[/] · rule {escape(', '.join(record.rules) or 'none')}", align="left")
    if not record.operations:
        console.print("Nothing is replaced in this model: every layer is the original's or a dense one.")
        changed = record.changes_something and record.outcome is not None
        for part in record.outcome.parts if record.outcome is not None and changed else ():
            console.print(Text("  " + part))
        return
    if record.outcome is not None:
        for part in record.outcome.parts:
            console.print(Text("  " + part))
        console.print(_found(record.outcome))
    console.print(_operations(record.operations, everything))
    if record.outcome is not None:
        console.print(totals_table(record.outcome))
        if record.outcome.output_change == 0 and any(o.output_error for o in record.operations):
            console.print(
                "[dim]the replaced layers changed and the outputs did not: with these weights they do not "
                "reach the output (fresh residual networks often begin with branches scaled by zero)[/]"
            )
    inexact = [o for o in record.operations if o.start != "exact"]
    fitted = [o for o in inexact if not site_kind(o.kind).inserts]
    for training in record.trainings:
        console.print(_training(training))
    if fitted and not record.trainings:
        warn(console, _advice(fitted), "distil before use")
    if (number := len(inexact) - len(fitted)) and not record.trainings:
        many = f"{number} inserted map{'s' * (number != 1)} did not start as the identity"
        warn(console, f"{many}. The model must be trained before it is used.", "train before use")


def _training(training: Training) -> Text:
    """One training in a line or two: from whom, on what, for how long, and its metrics."""
    how = f"distilled from {training.teacher}" if training.teacher else "fine-tuned"
    text = (
        f"{how} on {training.examples:,} examples of {training.data}: {training.steps:,} steps of "
        f"{training.batch}, {training.seconds / 60:.1f} minutes"
    )
    for name, after in training.after.items():
        of = training.teacher_metrics.get(name)
        text += f"\n  {name} on held-out examples {training.before.get(name, float('nan')):.4f} → {after:.4f}"
        text += f" (teacher {of:.4f})" if of is not None else ""
    return Text(text)


def _advice(fitted: list[Operation]) -> str:
    errors = [o.weight_error for o in fitted if o.weight_error is not None]
    how_far = (
        f" Their weights are off by {min(errors):.2f} to {max(errors):.2f} relative "
        f"(median {median(errors):.2f})."
        if errors
        else ""
    )
    many = f"{len(fitted)} layer{'s' * (len(fitted) != 1)}"
    return f"{many} approximate what they replace.{how_far} The model must be distilled before it is used."


def new_table(title: str, *columns: str, left: int = 1) -> Table:
    """A table without lines, its first ``left`` columns aligned to the left, the others to the right."""
    table = Table(
        title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", overflow="fold")
    return table


def _found(outcome: Outcome) -> RenderableType:
    table = new_table("\nFound", "kind", "found", "replaced", "left")
    for kind in outcome.found:
        table.add_row(escape(kind.kind), str(kind.found), str(kind.replaced), str(kind.found - kind.replaced))
    reasons = [
        Text(f"  {number} {kind.kind} left: {reason}", style="dim")
        for kind in outcome.found
        for reason, number in sorted(kind.left.items(), key=lambda item: -item[1])[:5]
    ]
    return Group(table, *reasons)


def _operations(operations: list[Operation], everything: bool) -> RenderableType:
    table = new_table("\nReplaced", "site", "by", "parameters", "→", "weight error", "output error", left=2)
    shown = operations if everything or len(operations) <= _ROWS else operations[: _ROWS - 5]
    for o in shown:
        kept = o.form == "dense"
        table.add_row(
            escape(o.path),
            "dense layer (reverted)" if kept else escape(_short(o.structure)) + (", int8" if o.int8 else ""),
            f"{o.parameters_before:,}",
            f"{o.parameters_after:,}",
            "exact" if o.start == "exact" and not o.int8 else show_error(o.weight_error),
            "exact" if o.start == "exact" and not o.int8 else show_error(o.output_error),
        )
    rest = len(operations) - len(shown)
    return Group(table, Text(f"… and {rest} more (--all shows them)", style="dim")) if rest else table


def _short(structure: Structure) -> str:
    match structure:
        case GroupedKaleidoscope():
            return f"K: {structure.groups} groups, {_widths(structure)}"
        case Kaleidoscope():
            return f"K: {_widths(structure)}"
        case Sum():
            return f"{_short(structure.main)} + {_rank(structure)}"
        case Chain():
            return f"chain of {len(structure.factors)}"
        case Butterfly():
            return f"B: radix {_radix(structure.radix)}"
        case _:
            return str(structure)


def _widths(structure: Kaleidoscope | GroupedKaleidoscope) -> str:
    return f"w={structure.width} e={structure.expansion} radix {_radix(structure.radix)}"


def _rank(structure: Sum) -> str:
    return f"rank {structure.rank}" if structure.rank else f"rank, {structure.share:.3g} in all"


def _radix(radix: int | str | tuple[int, ...]) -> str:
    return str(radix) if isinstance(radix, (int, str)) else "·".join(map(str, radix))


def show_error(value: float | None) -> str:
    """A relative error as people read it; a dash where there is none."""
    return "–" if value is None else f"{value:.3f}" if value >= 1e-3 else f"{value:.0e}"


def totals_table(outcome: Outcome) -> RenderableType:
    """What a conversion did to the whole model."""
    table = new_table("\nThe whole model", "", "before", "after", "after / before")
    before, after = outcome.parameters
    table.add_row("parameters", f"{before:,}", f"{after:,}", _ratio(before, after))
    if outcome.bytes is not None:
        before, after = outcome.bytes
        table.add_row("size", f"{before / 1e6:,.1f} MB", f"{after / 1e6:,.1f} MB", _ratio(before, after))
    if outcome.multiplications is not None:
        before, after = outcome.multiplications
        table.add_row(
            "multiplications per example",
            f"{before / 1e6:,.1f} M",
            f"{after / 1e6:,.1f} M",
            _ratio(before, after),
        )
    if outcome.latency is not None:
        table.add_row(
            f"latency, batch {outcome.batch}",
            f"{outcome.latency[0]:.1f} ms",
            f"{outcome.latency[1]:.1f} ms",
            _ratio(*outcome.latency),
        )
    if outcome.output_change is not None:
        table.add_row("change of the outputs, relative", "", f"{outcome.output_change:.2g}", "")
    if outcome.latency is None:
        return table
    note = (
        f"latency: median of interleaved runs, {outcome.device}, {outcome.threads} "
        f"thread{'s' * (outcome.threads != 1)}, {outcome.backend} kernels"
    )
    return Group(table, Text(note, style="dim"))


def _ratio(before: float, after: float) -> str:
    return f"{after / before:.2f}×" if before else "–"


def show_sites(
    console: Console, sites: list[Site], failures: dict[str, str], *, everything: bool = False
) -> None:
    """Sites of a model, and the modules that could not be traced."""
    table = new_table(
        "Sites", "kind", "path", "class", "in → out", "groups", "parameters", "vectors", "", left=3
    )
    table.columns[-1].justify = "left"
    shown = sites if everything or len(sites) <= 2 * _ROWS else sites[: 2 * _ROWS - 5]
    for site in shown:
        table.add_row(
            escape(site.kind),
            escape(site.path),
            escape(site.class_name),
            f"{site.in_features} → {site.out_features}",
            str(site.groups),
            f"{site.parameters:,}",
            f"{site.vectors:,}",
            Text(f"cannot be replaced: {site.reason}" if site.reason else "", style="yellow"),
        )
    console.print(table)
    if len(shown) < len(sites):
        console.print(f"[dim]… and {len(sites) - len(shown)} more (--all shows them)[/]")
    kinds = {kind: sum(site.kind == kind for site in sites) for kind in dict.fromkeys(s.kind for s in sites)}
    console.print(
        "\n"
        + (", ".join(f"[bold]{number}[/] {kind}" for kind, number in kinds.items()) or "No site was found.")
    )
    for path, failure in failures.items():
        console.print(Text(f"not traced: {path or 'the model itself'}: {failure}", style="yellow"))


def show_insertions(console: Console, sites: list[Site], *, everything: bool = False) -> None:
    """The modules that a map can be inserted before or after, with the shapes of what would be mapped."""
    rows: dict[str, dict[str, list[Site]]] = {}
    for site in sites:
        rows.setdefault(site.owner, {}).setdefault(site.facts["place"], []).append(site)
    able = [
        (path, places)
        for path, places in rows.items()
        if everything or any(site.reason is None for at in places.values() for site in at)
    ]
    table = new_table("Insertions", "path", "class", "before", "after", left=4)
    shown = able if everything else able[: 2 * _ROWS]
    for path, places in shown:
        owner = places["before"][0]
        sizes = (_sizes(places[place]) for place in ("before", "after"))
        table.add_row(escape(path or "the model itself"), escape(owner.class_name), *sizes)
    console.print(table)
    if len(shown) < len(rows):
        console.print(f"[dim]… and {len(rows) - len(shown)} more modules (--all shows them)[/]")
    console.print(
        "\nA rule says [[insert]], before or after, and dim: one of the numbered dimensions.",
        markup=False,
        highlight=False,
    )


def _sizes(sites: list[Site]) -> Text:
    """The dimensions that a map can be inserted along, with their sizes; or why it cannot."""
    able = [f"{site.dim}: {site.in_features}" for site in sites if site.reason is None]
    return Text(", ".join(able)) if able else Text(sites[-1].reason or "", style="yellow")


def show_plan(console: Console, plan: Plan, parts: list[str]) -> None:
    """What a rule would do to a model."""
    for part in parts:
        console.print(Text("  " + part))
    table = new_table("\nPlan", "site", "decision", "parameters", "→", "multiplications", "→", left=2)
    for d in plan.decisions:
        grid = f" on {' × '.join(map(str, d.grid))}" if d.grid else ""
        replaced, verb = d.action == "replace", site_kind(d.kind).verbs[0]
        table.add_row(
            escape(d.path),
            Text(
                f"{verb}: {d.structure}, start {d.start}{grid}" if replaced else f"leave: {d.reason}",
                style="" if replaced else "dim",
            ),
            f"{d.parameters_before:,}",
            f"{d.parameters_after:,}" if replaced else "",
            f"{d.multiplications_before:,}",
            f"{d.multiplications_after:,}" if replaced else "",
        )
    console.print(table)
