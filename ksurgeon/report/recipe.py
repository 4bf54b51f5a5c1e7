"""A recipe's results as a picture: what every student has lost and regained, over its parameters."""

import re
from pathlib import Path
from typing import Any

from ksurgeon.errors import RecipeError
from ksurgeon.report.figures import COLOURS, GREY, new_figure, write_figure

__all__ = ["curves_of", "draw_results"]

_NUMBERED = re.compile(r"(.+)-\d+")


def curves_of(results: dict[str, Any]) -> dict[str, list[tuple[float, dict[str, Any]]]]:
    """The students as curves: per cent of the original's parameters, ascending, and the student's results.

    Students whose names differ only in a number at the end, such as "low-rank-50" and "low-rank-25", make
    one curve.
    """
    curves: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for name, done in results["variants"].items():
        numbered = _NUMBERED.fullmatch(name)
        share = 100 * done["parameters"] / max(results["dense"]["parameters"], 1)
        curves.setdefault(numbered[1] if numbered else name, []).append((share, done))
    return {family: sorted(points, key=lambda point: point[0]) for family, points in curves.items()}


def draw_results(results: dict[str, Any], file: Path) -> None:
    """Draw one pair of axes for each metric: dashed curves with hollow points after surgery, solid ones after
    training.

    Args:
        results: what ``run_recipe`` returns, or the content of its ``results.json``.

    Raises:
        RecipeError: nothing was evaluated.
        FolderError: the file cannot be written.
        InputError: matplotlib is not installed.
    """
    metrics = results["dense"]["metrics"]
    if not metrics:
        raise RecipeError(f"the recipe {results['recipe']} evaluates nothing that could be drawn")
    curves = curves_of(results)
    figure, axes = new_figure(4.6 * len(metrics), 4.0, len(metrics))
    for metric, here in zip(metrics, axes if len(metrics) > 1 else [axes], strict=True):
        here.axhline(metrics[metric], color=GREY, linewidth=1, label="the original")
        for number, (family, points) in enumerate(curves.items()):
            colour = COLOURS[number % len(COLOURS)]
            xs = [share for share, _ in points]
            for stage, style, fill in (("after_surgery", "o--", "white"), ("after_training", "o-", colour)):
                ys = [done[stage].get(metric, float("nan")) for _, done in points]
                label = family if fill == colour else None
                here.plot(xs, ys, style, color=colour, markerfacecolor=fill, markersize=4, label=label)
        here.set_xlabel("parameters of the whole model, % of the original's")
        here.set_ylabel(metric)
        here.set_title("hollow: after surgery, filled: after training", fontsize=8)
        here.grid(alpha=0.25)
        here.legend(frameon=False, fontsize=8)
    write_figure(figure, file)
