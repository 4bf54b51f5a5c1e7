"""Results of recipes with seeds as tables and images of a page; see ``benchmarks.report``."""

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ksurgeon.report.seeds import draw_seeds, metrics_of

__all__ = ["draw", "table"]

Results = dict[str, Any]


def _setting(results: Results) -> str:
    """Of a run, in words: the machine and the seeds."""
    machines = [results["machine"], *results.get("resumed_on", [])]
    words = [
        f"{name} {' and '.join(values)}"
        for name in ("processor", "gpu", "torch")
        if (values := dict.fromkeys(machine[name] for machine in machines if machine.get(name)))
    ]
    number = max((len(variant["seeds"]) for variant in results["variants"].values()), default=0)
    quick = "QUICK RUN, which tells nothing; " if results.get("quick") else ""
    seeds = f"{number} seeds, mean ± standard error" if number != 1 else "one seed"
    return f"**{results['recipe']}** · {quick}{', '.join(words)}; {seeds}"


def table(results: Results, filters: Mapping[str, list[str]] | None = None) -> str:
    """Markdown: for each variant its size, held-out metrics in %, their differences to the baseline on the
    same seeds with the 95 % interval, and times.

    Args:
        filters: globs for the variants (``cases``) and headings (``columns``) that are shown; the columns
            of differences are called "METRIC difference".
    """
    if results["recipe"] == "permuted_images":
        from benchmarks.permuted import table as permuted

        return f"{_setting(results)}\n\n{permuted(results)}"
    baseline, latencies = results["baseline"], _latencies(results)
    cases, columns = (filters or {}).get("cases", ["*"]), (filters or {}).get("columns", ["*"])
    names = [
        name
        for name in results["variants"]
        if results["statistics"].get(name) and any(fnmatchcase(name, case) for case in cases)
    ]
    shown = "its baseline" if results.get("baselines") else baseline
    metrics = metrics_of(results)
    head = ["variant", "seeds", "parameters", "multiplications"]
    for metric in metrics:
        head += [f"{metric}, %", f"− {shown} (95 % interval)"]
    head += ["training, s", *(["latency, ms", f"÷ {shown}"] if latencies else [])]
    asked = [
        f"{head[at - 1].removesuffix(', %')} difference" if heading.startswith("− ") else heading
        for at, heading in enumerate(head)
    ]
    shown_at = [at for at, heading in enumerate(asked) if any(fnmatchcase(heading, c) for c in columns)]
    lines = [_setting(results), "", f"| {' | '.join(head[at] for at in shown_at)} |"]
    lines.append("|" + "---|" * len(shown_at))
    for name in names:
        told, variant = results["statistics"][name], results["variants"][name]
        multiplications = variant.get("multiplications")
        cells = [name, str(told["seconds"]["number"]), f"{variant['parameters']:,}"]
        cells.append("" if multiplications is None else f"{multiplications:,}")
        for metric in metrics:
            cells += [_mean(told.get(metric)), _difference(told.get(metric, {}).get("difference"))]
        cells.append(f"{told['seconds']['mean']:.0f}")
        if latencies:
            own = results.get("baselines", {}).get(name, baseline)
            ratio = latencies[name] / latencies[own] if own in latencies else None
            cells += [f"{latencies[name]:.2f}", "" if ratio is None else f"{ratio:.2f}×"]
        lines.append(f"| {' | '.join(cells[at] for at in shown_at)} |")
    return "\n".join(lines) + "\n"


def draw(results: Results, folder: Path) -> str:
    """Markdown of an image that is written to the folder, "" for a recipe that draws its own."""
    name = results["recipe"]
    if name == "permuted_images":
        return ""
    import matplotlib

    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")  # the same image for the same results
    with matplotlib.rc_context({"svg.hashsalt": "ksurgeon"}):
        draw_seeds(results, folder / f"{name}.svg")
    return f"\n![{name}: held-out accuracy over steps, means and 95 % intervals]({name}.svg)\n"


def _latencies(results: Results) -> dict[str, float]:
    """Milliseconds of every variant; none unless all have one."""
    found = {name: v.get("latency", {}).get("milliseconds") for name, v in results["variants"].items()}
    return found if all(found.values()) else {}


def _mean(told: Results | None) -> str:
    if told is None:
        return ""
    error = told["standard_error"]
    return f"{100 * told['mean']:.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")


def _difference(told: Results | None) -> str:
    if told is None:
        return ""
    interval = told.get("interval")
    spread = f" ({100 * interval[0]:+.1f} … {100 * interval[1]:+.1f})" if interval else ""
    own = f"{told['against']}: " if "against" in told else ""
    return f"{own}{100 * told['mean']:+.1f}{spread}"
