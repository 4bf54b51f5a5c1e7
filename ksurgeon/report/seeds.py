"""Variants of a recipe with several seeds: a table and a picture of means, spread and differences."""

from pathlib import Path
from statistics import fmean
from typing import Any

from rich.markup import escape
from rich.table import Table

from ksurgeon.report.figures import COLOURS, GREY, new_figure, write_figure
from ksurgeon.train.log import Evaluation

__all__ = ["draw_seeds", "metrics_of", "seeds_table"]

Results = dict[str, Any]

_BESIDE = 2  # metrics that fit beside one another
_STYLES = ("-", "--", ":")  # of as many curves as there are colours, and of the next ones


def seeds_table(results: Results) -> Table:
    """One row for each variant, or for each of its metrics where there are many, with the means so far ±
    their standard errors, and the differences to the baseline with their 95 % intervals."""
    statistics, variants = results["statistics"], results["variants"]
    metrics = metrics_of(results)
    beside = metrics if len(metrics) <= _BESIDE else ["mean"]  # more have a line each
    latency = any("latency" in variant for variant in variants.values())
    shown = "its baseline" if results.get("baselines") else results["baseline"]
    table = Table("variant", box=None, header_style="bold")
    for name in ("seeds", "parameters", "multiplications", "seconds"):
        table.add_column(escape(name), justify="right")
    if latency:
        table.add_column("ms, one thread", justify="right")
    if beside is not metrics:
        table.add_column("metric")
    for name in beside:
        table.add_column(escape(name), justify="right")
        table.add_column(f"− {escape(shown)} (95 %)", justify="right")
    for name, variant in variants.items():
        told = statistics.get(name, {})
        cells = [escape(name), str(len(variant["seeds"])), f"{variant['parameters']:,}"]
        cells.append(f"{variant['multiplications']:,}" if "multiplications" in variant else "")
        cells.append(_mean(told.get("seconds"), 1))
        if latency:
            cells.append(f"{variant['latency']['milliseconds']:.2f}" if "latency" in variant else "")
        values = [[_mean(told.get(m)), _difference(told.get(m, {}).get("difference"))] for m in metrics]
        if beside is metrics:
            table.add_row(*cells, *(cell for pair in values for cell in pair))
            continue
        for metric, pair in zip(metrics, values, strict=True):
            table.add_row(*cells, escape(metric), *pair)
            cells = [""] * len(cells)
    return table


def draw_seeds(results: Results, file: Path) -> None:
    """Draw held-out accuracy (or what decides) over steps, a thin line for each seed and a thick one for
    their mean; beside it the final means with their 95 % intervals, from three seeds on, and the first of
    them over parameters.

    Raises:
        FolderError: the file cannot be written.
        InputError: matplotlib is not installed.
    """
    metrics = metrics_of(results)[:3]
    names = [name for name, variant in results["variants"].items() if variant["seeds"]]
    panels = 1 + len(metrics) + bool(metrics)
    figure, axes = new_figure(2 + 3.2 * panels, max(3.4, 0.3 * len(names) + 1.6), panels)
    curves, *means = axes if metrics else [axes]
    label = ""
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        style = _STYLES[number // len(COLOURS) % len(_STYLES)]
        runs = []
        for done in results["variants"][name]["seeds"].values():
            points, before = list[tuple[int, float]](), 0
            stages = [[Evaluation(**one) for one in stage["history"]] for stage in done["training"]]
            if not stages:
                continue  # evaluated, and not trained
            label = stages[-1][-1].metric
            for history, stage in zip(stages, done["training"], strict=True):
                if history[-1].metric == label:  # a stage without labels may know nothing of it
                    points += [(before + e.step, e.value) for e in history if e.step or e is history[0]]
                before += stage["steps"]
            runs.append(points)
            curves.plot(*zip(*runs[-1], strict=True), color=colour, linewidth=0.6, alpha=0.4)
        if runs and len({tuple(step for step, _ in run) for run in runs}) == 1:
            mean = [(at[0][0], fmean(value for _, value in at)) for at in zip(*runs, strict=True)]
            curves.plot(*zip(*mean, strict=True), color=colour, linestyle=style, linewidth=1.8, label=name)
        else:
            curves.plot([], [], color=colour, linestyle=style, label=name)
    curves.set_xlabel("steps")
    curves.set_ylabel(f"held-out {label}")
    curves.legend(frameon=False, fontsize=7)
    if metrics:
        _draw_sizes(results, names, metrics[0], means[-1])
    for here, metric in zip(means, metrics, strict=False):
        told = {name: results["statistics"][name].get(metric) for name in names}
        for number, name in enumerate(names):
            if (one := told[name]) is not None:
                here.errorbar(one["mean"], -number, xerr=_half(one), **_mark(number))
        against = {one["difference"].get("against") for one in told.values() if one and "difference" in one}
        for baseline in sorted({results["baseline"], *against}, key=str):
            if (base := told.get(baseline)) is not None:
                here.axvline(base["mean"], color=GREY, linewidth=0.8, linestyle="--")
        here.set_yticks([-number for number in range(len(names))], names, fontsize=7)
        here.set_xlabel(f"{metric}, mean and 95 % interval")
    for here in (curves, *means):
        here.grid(alpha=0.25)
    write_figure(figure, file)


def _draw_sizes(results: Results, names: list[str], metric: str, axes: Any) -> None:
    """Means of a metric over the number of parameters."""
    for number, name in enumerate(names):
        told = results["statistics"][name].get(metric)
        if told is not None:
            size = results["variants"][name]["parameters"] / 1000
            axes.errorbar(size, told["mean"], yerr=_half(told), **_mark(number))
    axes.set_xlabel("thousand parameters")
    axes.set_ylabel(f"{metric}, mean and 95 % interval")


def _half(told: Results) -> float:
    """Half of the interval; that of two seeds, 18 standard deviations wide, would hide all others."""
    return float(told["interval"][1] - told["mean"]) if told["number"] > 2 else 0.0


def _mark(number: int) -> dict[str, Any]:
    """How a mean is drawn: hollow where its curve is dashed, a square where it is dotted."""
    colour, style = COLOURS[number % len(COLOURS)], number // len(COLOURS) % len(_STYLES)
    hollow = {"markerfacecolor": "white"} if style == 1 else {}
    return {"fmt": "s" if style == 2 else "o", "capsize": 3, "color": colour, **hollow}


def metrics_of(results: Results) -> list[str]:
    """What was evaluated, held-out loss only where there is nothing else."""
    found = {
        metric: None for told in results["statistics"].values() for metric in told if metric != "seconds"
    }
    return [metric for metric in found if metric != "loss"] or list(found)


def _mean(told: Results | None, digits: int = 4) -> str:
    if told is None:
        return ""
    error = told["standard_error"]
    return f"{told['mean']:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")


def _difference(told: Results | None) -> str:
    if told is None:
        return ""
    interval = told.get("interval")
    spread = f" ({interval[0]:+.4f} … {interval[1]:+.4f})" if interval else ""
    own = f"{escape(told['against'])}: " if "against" in told else ""
    return f"{own}{told['mean']:+.4f}{spread}"
