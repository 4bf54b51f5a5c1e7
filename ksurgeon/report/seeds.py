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


def seeds_table(results: Results) -> Table:
    """One row for each variant, with the means so far ± their standard errors, and the differences to the
    baseline with their 95 % intervals."""
    statistics, variants = results["statistics"], results["variants"]
    metrics = metrics_of(results)
    latency = any("latency" in variant for variant in variants.values())
    table = Table("variant", box=None, header_style="bold")
    for name in ("seeds", "parameters", "multiplications", *metrics, "seconds"):
        table.add_column(escape(name), justify="right")
        if name in metrics:
            table.add_column(f"− {escape(results['baseline'])} (95 %)", justify="right")
    if latency:
        table.add_column("ms, one thread", justify="right")
    for name, variant in variants.items():
        told = statistics.get(name, {})
        cells = [str(len(variant["seeds"])), f"{variant['parameters']:,}"]
        cells.append(f"{variant['multiplications']:,}" if "multiplications" in variant else "")
        for metric in metrics:
            cells += [_mean(told.get(metric)), _difference(told.get(metric, {}).get("difference"))]
        cells.append(_mean(told.get("seconds"), 1))
        if latency:
            cells.append(f"{variant['latency']['milliseconds']:.2f}" if "latency" in variant else "")
        table.add_row(escape(name), *cells)
    return table


def draw_seeds(results: Results, file: Path) -> None:
    """Draw held-out accuracy (or what decides) over steps, a thin line for each seed and a thick one for
    their mean; and beside it the final means with their 95 % intervals.

    Raises:
        FolderError: the file cannot be written.
        InputError: matplotlib is not installed.
    """
    metrics = metrics_of(results)[:3]
    names = [name for name, variant in results["variants"].items() if variant["seeds"]]
    figure, axes = new_figure(5.2 + 3.2 * len(metrics), max(3.4, 0.3 * len(names) + 1.6), 1 + len(metrics))
    curves, *means = axes if len(metrics) else [axes]
    label = ""
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        style = "--" if number // len(COLOURS) % 2 else "-"
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
    for here, metric in zip(means, metrics, strict=True):
        told = {name: results["statistics"][name].get(metric) for name in names}
        for number, name in enumerate(names):
            if (one := told[name]) is not None:
                here.errorbar(
                    one["mean"],
                    -number,
                    xerr=one["interval"][1] - one["mean"] if "interval" in one else 0,
                    fmt="o",
                    capsize=3,
                    color=COLOURS[number % len(COLOURS)],
                )
        if (base := told.get(results["baseline"])) is not None:
            here.axvline(base["mean"], color=GREY, linewidth=0.8, linestyle="--")
        here.set_yticks([-number for number in range(len(names))], names, fontsize=7)
        here.set_xlabel(f"{metric}, mean and 95 % interval")
    for here in (curves, *means):
        here.grid(alpha=0.25)
    write_figure(figure, file)


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
    return f"{told['mean']:+.4f}{spread}"
