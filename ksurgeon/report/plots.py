"""Images of a plan: loss increase over the budget, and what every layer loses and saves."""

from collections.abc import Sequence
from pathlib import Path

from ksurgeon.planner import Budget, Planning
from ksurgeon.report.figures import BLUE, GREY, RED, new_figure, write_figure
from ksurgeon.rules.plan import Plan

__all__ = ["draw_front", "draw_sites"]

_KINDS = {
    "params": "parameters of the eligible layers",
    "flops": "multiplications of the eligible layers",
    "latency": "milliseconds of the whole model",
    "error": "allowed loss increase",
}


def draw_front(planning: Planning, front: Sequence[tuple[Budget, Plan]], file: Path) -> None:
    """Predicted and measured harm over the budget."""
    figure, axes = new_figure(6.4, 4.2)
    kind = planning.budget.kind
    xs = [100 * b.value if kind != "error" else b.value for b, _ in front]
    for name, colour, style in (("predicted", GREY, "--"), ("measured", BLUE, "-")):
        ys = [getattr(plan, f"{name}_harm") for _, plan in front]
        axes.plot(xs, ys, style, color=colour, marker="o", markersize=4, label=f"{name}, held-out data"
                  if name == "measured" else name)  # fmt: skip
    here = 100 * planning.budget.value if kind != "error" else planning.budget.value
    axes.plot([here], [planning.plan.measured_harm], "o", markersize=9, color=RED, label=f"this plan, "
              f"{planning.budget}")  # fmt: skip
    unit = planning.harm.unit if planning.plan.harm != "metric" else "loss of the metric"
    axes.set_xlabel(_KINDS[kind] + (", % kept" if kind != "error" else ""))
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    if kind != "error":
        axes.set_xlim(0, 105)
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    write_figure(figure, file)


def draw_sites(planning: Planning, file: Path) -> None:
    """For every site in play: the harm of what was chosen, and the share of its parameters that it keeps."""
    playing = {site.path for site in planning.sites if len(site.options) > 1}
    decisions = [d for d in planning.plan.decisions if d.path in playing]
    figure, both = new_figure(10.0, max(2.5, 0.22 * len(decisions) + 1.2), columns=2)
    places = range(len(decisions))[::-1]
    kept = [100 * d.parameters_after / d.parameters_before for d in decisions]
    both[0].barh(places, [d.harm for d in decisions], color=RED, height=0.7)
    both[0].set_xlabel(f"loss increase, this site alone ({planning.harm.name})")
    both[0].set_yticks(places, [d.path for d in decisions], fontsize=7)
    both[1].barh(places, [100] * len(decisions), color="#e6e6e6", height=0.7)
    both[1].barh(places, kept, color=[GREY if d.action == "leave" else BLUE for d in decisions], height=0.7)
    both[1].set_xlabel("parameters kept, % (grey: left as it is)")
    both[1].set_xlim(0, 100)
    both[1].set_yticks(places, [str(d.structure or "") for d in decisions], fontsize=7)
    for axes in both:
        axes.set_ylim(-0.6, len(decisions) - 0.4)
        axes.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    write_figure(figure, file)
