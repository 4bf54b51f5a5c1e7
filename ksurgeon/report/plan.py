"""Plans on the terminal: what was chosen, what other budgets would harm, and why a site is as it is."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from ksurgeon.planner import Budget, Option, Planning, SiteOptions
from ksurgeon.report.terminal import new_table
from ksurgeon.rules.plan import Decision, Plan

__all__ = ["explain_site", "show_front", "show_planning"]

_ROWS, _BAR = 60, 16
_BLOCKS = " ▏▎▍▌▋▊▉█"


def show_planning(console: Console, planning: Planning, *, everything: bool = False) -> None:
    """Every decision with its cost and harm, and what they come to together."""
    plan = planning.plan
    most = max((d.harm for d in plan.replacements), default=0.0)
    table = new_table(
        f"Plan for {plan.budget}", "site", "becomes", "parameters", "→", "ms", "→", "output error",
        "loss increase", "", left=2,
    )  # fmt: skip
    table.columns[-1].justify = "left"
    shown = plan.decisions if everything else plan.decisions[:_ROWS]
    for d in shown:
        if d.action == "leave":
            dense = planning.options_of(d.path).options[0].latency
            table.add_row(
                escape(d.path), Text(f"left: {d.reason}", style="dim"), f"{d.parameters_before:,}", "",
                _milliseconds(dense), "", "", "", "",
            )  # fmt: skip
            continue
        table.add_row(
            escape(d.path),
            escape(str(d.structure)),
            f"{d.parameters_before:,}",
            f"{d.parameters_after:,}",
            _milliseconds(d.latency_before),
            _milliseconds(d.latency_after),
            f"{d.error or 0:.3f}",
            f"{d.harm:.1e}",
            Text(_bar(d.harm / most if most else 0.0), style="red"),
        )
    console.print(table)
    if len(shown) < len(plan.decisions):
        console.print(f"[dim]… and {len(plan.decisions) - len(shown)} more (--all shows them)[/]")
    for message in (m for found in plan.unmatched_names.values() for m in found):
        console.print(Text(message, style="yellow"))
    _totals(console, planning)


def _totals(console: Console, planning: Planning) -> None:
    plan, table = planning.plan, new_table("\nTogether", "", "before", "after", "after / before")
    playing = {site.path for site in planning.sites if len(site.options) > 1}
    decisions = [d for d in plan.decisions if d.path in playing]
    for name, before, after in (
        ("parameters", "parameters_before", "parameters_after"),
        ("multiplications per example", "multiplications_before", "multiplications_after"),
    ):
        old = sum(getattr(d, before) for d in decisions)
        new = sum(getattr(d, after) for d in decisions)
        table.add_row(f"{name}, eligible layers", f"{old:,}", f"{new:,}", f"{new / old:.3f}" if old else "–")
    if planning.budget.kind == "latency":
        new = planning.fixed + sum(_latency(planning, d) for d in decisions)
        old = planning.total
        how = f"milliseconds, the whole model{_way(plan)}"
        table.add_row(how, f"{old:.2f}", f"{new:.2f}", f"{new / old:.3f}")
        if planning.latency is not None:
            old, new = planning.latency
            table.add_row(
                "the same, measured with all of them", f"{old:.2f}", f"{new:.2f}", f"{new / old:.3f}"
            )
    console.print(table)
    unit = planning.harm.unit if plan.harm != "metric" else "loss of the metric"
    console.print(
        f"loss increase ({unit}): [bold]{_harm(plan.predicted_harm)}[/] predicted, "
        f"[bold]{_harm(plan.measured_harm)}[/] measured on held-out data, all replacements together",
        highlight=False,
    )
    gap = planning.gap
    proof = "optimal" if gap <= 1e-9 else f"at most {gap:.2%} from the best" if gap < 1e3 else "not proved"
    replaced = sum(d.action == "replace" for d in decisions)
    console.print(f"{replaced} of {len(decisions)} eligible sites replaced; choice: {proof} (gap {gap:.1e})")


def _way(plan: Plan) -> str:
    """How the model was run, where that was asked for."""
    threads = f"{plan.threads} thread{'s' * (plan.threads != 1)}" if plan.threads else ""
    runtime = {"eager": "", "compile": "compiled", "onnx": "ONNX Runtime"}[plan.runtime]
    return "".join(f", {part}" for part in (plan.precision, runtime, threads) if part)


def show_front(console: Console, planning: Planning, front: Sequence[tuple[Budget, Plan]]) -> None:
    """Harm of plans for several budgets."""
    unit = planning.harm.unit if planning.plan.harm != "metric" else "loss of the metric"
    table = new_table(
        f"\nOther budgets ({unit})", "budget", "parameters", "multiplications", "replaced", "predicted",
        "measured", "", left=1,
    )  # fmt: skip
    table.columns[-1].justify = "left"
    playing = {site.path for site in planning.sites if len(site.options) > 1}
    most = max((p.measured_harm or 0.0 for _, p in front), default=0.0)
    for budget, plan in front:
        ds = [d for d in plan.decisions if d.path in playing]
        table.add_row(
            Text(str(budget), style="bold" if budget == planning.budget else ""),
            _share(ds, "parameters"),
            _share(ds, "multiplications"),
            str(len(plan.replacements)),
            _harm(plan.predicted_harm),
            _harm(plan.measured_harm),
            Text(_bar((plan.measured_harm or 0.0) / most if most else 0.0), style="red"),
        )
    console.print(table)


def explain_site(console: Console, planning: Planning, options: SiteOptions) -> None:
    """What every option of a site costs and harms, and why the one that was taken was."""
    decision = next(d for d in planning.plan.decisions if d.path == options.path)
    console.print()
    console.rule(f"[bold]{escape(options.path)}[/]", align="left")
    if options.reason is not None:
        console.print(f"Left as it is: {options.reason}.", highlight=False)
        return
    table = new_table(
        "", "option", "parameters", "multiplications", "ms", "output error", "predicted increase", "measured",
        "", left=1,
    )  # fmt: skip
    table.columns[-1].justify = "left"
    ranked = sorted(options.options, key=lambda o: -planning_cost(planning, o))
    best: Option | None = None
    notes: dict[int, str] = {}
    for option in sorted(options.options, key=lambda o: (planning_cost(planning, o), options.harm(o))):
        if not option.is_open:
            notes[id(option)] = option.skipped or option.refused or ""
        elif best is not None and options.harm(best) <= options.harm(option):
            notes[id(option)] = f"{best.structure or 'leaving it'} is smaller and loses less"
        else:
            best = option
    for option in ranked:
        taken = option.structure == decision.structure
        note = "← chosen" if taken else notes.get(id(option), "")
        note += " (quick fit)" if option.quick else ""
        table.add_row(
            Text(str(option.structure or "leave"), style="bold green" if taken else ""),
            f"{option.parameters:,}",
            f"{option.multiplications:,}",
            _milliseconds(option.latency),
            f"{option.error:.3f}" if option.skipped is None else "",
            f"{option.predicted * options.ratio:.1e}" if option.skipped is None else "",
            f"{option.measured:.1e}" if option.measured is not None else "",
            Text(note, style="green" if taken else "dim"),
        )
    console.print(table)
    console.print(_why(planning, options, decision), style="dim", highlight=False)


def planning_cost(planning: Planning, option: Option) -> float:
    """What the budget counts of an option."""
    if planning.budget.kind == "latency":
        return option.latency or 0.0
    return option.multiplications if planning.budget.kind == "flops" else option.parameters


def _why(planning: Planning, options: SiteOptions, decision: Decision) -> str:
    """The price that the budget puts on the site's next larger option, beside what others pay."""
    harms = (
        f"the measured loss increase is {options.ratio:.2f} times the predicted one"
        if options.ratio != 1
        else ""
    )
    if decision.action == "leave":
        text = (
            f"Left as it is: making other sites smaller meets {planning.budget} at a smaller loss increase "
            "than any option above"
        )
    else:
        text = (
            "Chosen because the total loss increase is least with it; options that lose less cost more than "
            f"they are worth elsewhere under {planning.budget}"
        )
    return f"{text}{'; ' + harms if harms else ''}."


def _bar(share: float) -> str:
    eighths = round(max(0.0, min(share, 1.0)) * _BAR * 8)
    return "█" * (eighths // 8) + (_BLOCKS[eighths % 8] if eighths % 8 else "")


def _latency(planning: Planning, decision: Decision) -> float:
    if decision.latency_after is not None:
        return decision.latency_after
    return planning.options_of(decision.path).options[0].latency or 0.0


def _share(decisions: Sequence[Decision], what: str) -> str:
    before = sum(getattr(d, f"{what}_before") for d in decisions)
    return f"{sum(getattr(d, f'{what}_after') for d in decisions) / before:.3f}" if before else "–"


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _harm(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if abs(value) >= 1e-3 else f"{value:.1e}"
