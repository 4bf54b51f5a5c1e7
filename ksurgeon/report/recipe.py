"""A recipe's results as a picture: what every student has lost and regained, over its parameters."""

import re
from pathlib import Path
from typing import Any

from ksurgeon.report.figures import GREY, new_figure, write_figure

__all__ = ["draw_results"]

_COLOURS = ("#2f6f9f", "#c0504d", "#6a994e", "#b07aa1", "#d98c21", "#555555")
_NUMBERED = re.compile(r"(.+)-\d+")


def draw_results(results: dict[str, Any], file: Path) -> None:
    """Draw one pair of axes for each metric: dashed after surgery, solid after training.

    Students whose names differ only in a number at the end, such as "low-rank-50" and "low-rank-25", make
    one curve.

    Args:
        results: what ``run_recipe`` returns, or the content of its ``results.json``.

    Raises:
        FolderError: the file cannot be written.
    """
    dense = results["dense"]
    curves: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for name, done in results["variants"].items():
        numbered = _NUMBERED.fullmatch(name)
        share = 100 * done["parameters"] / dense["parameters"]
        curves.setdefault(numbered[1] if numbered else name, []).append((share, done))
    metrics = list(dense["metrics"])
    figure, axes = new_figure(4.6 * max(len(metrics), 1), 4.0, max(len(metrics), 1))
    for metric, here in zip(metrics, axes if len(metrics) > 1 else [axes], strict=False):
        here.axhline(dense["metrics"][metric], color=GREY, linewidth=1, label="the original")
        for number, (family, points) in enumerate(curves.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            points = sorted(points, key=lambda point: point[0])
            xs = [share for share, _ in points]
            for stage, style, label in (("after_surgery", "--", None), ("after_training", "-", family)):
                ys = [done[stage][metric] for _, done in points]
                here.plot(xs, ys, style, color=colour, marker="o", markersize=4, label=label)
        here.set_xlabel("parameters of the whole model, % of the original's")
        here.set_ylabel(metric)
        here.set_title("dashed: after surgery, solid: after training", fontsize=8)
        here.grid(alpha=0.25)
        here.legend(frameon=False, fontsize=8)
    write_figure(figure, file)
