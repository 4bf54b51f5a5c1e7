"""Files of results as tables and images in a page: ``python -m benchmarks.report [PAGE]``.

The page says with a comment ``<!-- results FILE -->`` where the tables of a file go; what is between it and
``<!-- end -->`` is written anew. A file is of a benchmark, or the ``results.json`` of a recipe with seeds.
Words after the file's name make the tables shorter:

* ``short``: of ``permuted_images.json``, one row for each permutation.
* ``fastest``: for each model, batch and precision the fastest run, dense and converted.
* ``parts="…"``, ``cases="…"``, ``rows="…"``, ``columns="…"``: only those; globs with ``;`` between them. For
  recipes, ``cases`` are variants and ``columns`` are headings.

Images need matplotlib (extra ``bench``) and go beside the page.
"""

import argparse
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import seeds
from benchmarks.results import COPY, PEAK, READ, described, met, spread, time_of

__all__ = ["fastest", "render", "roofline", "tables"]

_PLACE = re.compile(r"(<!-- results (\S+)([^\n]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
_FILTER = re.compile(r'(\w+)="([^"]*)"')
_FILTERS = {"parts", "cases", "rows", "columns"}
_PRECISIONS = ("float32", "bfloat16", "int8")
_COLOURS = (
    "tab:blue",
    "tab:orange",
    "tab:green",
    "tab:red",
    "tab:purple",
    "tab:brown",
    "tab:pink",
    "tab:olive",
)


def _keeps(filters: Mapping[str, list[str]], name: str, value: object) -> bool:
    """Whether the page wants to see this part, case, number of rows or column."""
    return name not in filters or any(fnmatchcase(str(value), pattern) for pattern in filters[name])


def tables(
    results: dict[str, Any], filters: Mapping[str, list[str]] | None = None, link: str | None = None
) -> str:
    """Markdown: the setting, how many targets are met, and a table for each part.

    Args:
        filters: globs for the parts, cases, numbers of rows and columns that are shown; all, if left out.
        link: where all rows are, if some are not shown.
    """
    filters = filters or {}
    lines = [_head(results, link)]
    parts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in results["rows"]:
        shown = (("parts", row["part"]), ("cases", row["case"]), ("rows", row["rows"]))
        if all(_keeps(filters, name, value) for name, value in shown):
            parts[row["part"]].append(row)
    for part, rows in parts.items():
        others = dict.fromkeys(name for row in rows for name in row["ratios"])
        columns = [name for name in others if _keeps(filters, "columns", name)]
        head = [part, "rows", "ours", "spread", *columns]
        lines += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for row in sorted(rows, key=lambda row: _order(row, rows)):
            cells = [described(row, name) if name in row["ratios"] else "" for name in columns]
            lines.append(f"| {' | '.join([row['case'], str(row['rows']), *spread(row), *cells])} |")
    return "\n".join(lines) + "\n"


def _head(results: dict[str, Any], link: str | None) -> str:
    setting = ", ".join(f"{name} {value}" for name, value in results["setting"].items() if value is not None)
    targets = [(row, name) for row in results["rows"] for name in row["wanted"]]
    reached = sum(met(row, name) for row, name in targets)
    text = f"**{results['title']}** · {setting}."
    if targets:
        text += f" {reached} of {len(targets)} targets are met."
    return text + (f" [All rows]({link})." if link else "")


def fastest(results: dict[str, Any], filters: Mapping[str, list[str]], link: str) -> str:
    """Markdown: for each part, number of rows and precision the fastest dense run and the fastest of ours,
    and all targets that are missed."""
    head = ["model", "batch", "precision", "dense", "ours", "dense / ours"]
    lines = [_head(results, link), "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    parts = dict.fromkeys(row["part"] for row in results["rows"] if _keeps(filters, "parts", row["part"]))
    for part in parts:
        mine = [row for row in results["rows"] if row["part"] == part]
        for batch in dict.fromkeys(row["rows"] for row in mine if _keeps(filters, "rows", row["rows"])):
            same = [row for row in mine if row["rows"] == batch]
            ours = [(_median(row), row["case"]) for row in same]
            dense = [
                (time["median"], name.removeprefix("dense, "))
                for row in same
                for name, time in row["us"].items()
                if name.startswith("dense, ")
            ]
            for precision in _PRECISIONS:
                first, second = _best(dense, precision), _best(ours, precision)
                if first and second:
                    cells = [part, str(batch), precision, _way(first), _way(second)]
                    lines.append(f"| {' | '.join(cells)} | {first[0] / second[0]:.2g}× |")
    missed = [
        f"- {row['part']}, batch {row['rows']}, {row['case']}: {name} {described(row, name)}"
        for row in results["rows"]
        for name in row["wanted"]
        if not met(row, name)
    ]
    return "\n".join([*lines, "", "Targets that are missed:", "", *(missed or ["- none"])]) + "\n"


def _median(row: dict[str, Any]) -> float:
    return float(next(iter(row["us"].values()))["median"])


def _best(runs: Iterable[tuple[float, str]], precision: str) -> tuple[float, str] | None:
    """The fastest of the runs in a precision; "torch-int8 float32" counts as int8."""
    own = [run for run in runs if next(p for p in _PRECISIONS[::-1] if p in run[1]) == precision]
    return min(own, default=None)


def _way(run: tuple[float, str]) -> str:
    time, name = run
    way = name.removesuffix(" float32") if "int8" in name else name
    return f"{time_of(time)}, {way.rpartition(' ')[0] or way}"


def _order(row: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[int, int]:
    """Cases in the order in which they first came, each by its number of rows."""
    cases = list(dict.fromkeys(other["case"] for other in rows))
    return cases.index(row["case"]), row["rows"]


def roofline(results: dict[str, Any], file: Path) -> bool:
    """Draw rows with ``flop`` and ``bytes`` under what the machine can do; False where there are none."""
    rows = [row for row in results["rows"] if "flop" in row and PEAK in row["us"]]
    if not rows:
        return False
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "ksurgeon"
    figure, axes = pyplot.subplots(figsize=(8, 5))
    peak = 0.0
    for kind in dict.fromkeys(row.get("kind", "") for row in rows):
        same = [row for row in rows if row.get("kind", "") == kind]
        height = median(row["flop"] / row["us"][PEAK]["median"] / 1e3 for row in same)
        axes.axhline(height, color="black", linewidth=1)
        text = f"peak {height:.0f} GFLOP/s{', ' if kind else ''}{kind}"
        axes.annotate(text, (1, height), xycoords=("axes fraction", "data"), ha="right", va="bottom")
        peak = max(peak, height)
    # Reading the weights of one row's product: two operations for each four bytes.
    read = [row["flop"] / row["us"][READ]["median"] / 1e3 for row in rows if READ in row["us"]]
    lines = {2 * max(read)} if read else set[float]()
    moved = [row["moved"] / row["us"][COPY]["median"] / 1e3 for row in rows if COPY in row["us"]]
    lines |= {max(moved)} if moved else set()
    for speed in lines:
        ends = (0.2, max(peak / speed, 0.4))
        axes.plot(ends, [speed * end for end in ends], color="grey", linewidth=1, linestyle="--")
        axes.annotate(f"{speed:.0f} GB/s", (ends[0], speed * ends[0]), va="bottom")
    for colour, case in zip(_COLOURS, dict.fromkeys(row["case"] for row in rows), strict=False):
        mine = sorted((row for row in rows if row["case"] == case), key=lambda row: row["rows"])
        across = [row["flop"] / row["bytes"] for row in mine]
        up = [row["flop"] / next(iter(row["us"].values()))["median"] / 1e3 for row in mine]
        axes.plot(across, up, marker="o", color=colour, linewidth=0.6, label=case)
    axes.set(xscale="log", yscale="log", title=results["title"])
    axes.set(xlabel="multiplications and additions for each byte read or written", ylabel="GFLOP/s")
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    return True


def render(page: str, folder: Path, pictures: Path) -> str:
    """The page with the results of ``folder`` in their places, and their rooflines in ``pictures``.

    Raises:
        SystemExit: the page asks for something that is not known.
    """

    def replaced(place: re.Match[str]) -> str:
        results = json.loads((folder / place[2]).read_text())
        filters = {name: re.split(r";\s*", globs) for name, globs in _FILTER.findall(place[3])}
        words = set(_FILTER.sub("", place[3]).split())
        if unknown := (words - {"short", "fastest"}) | (filters.keys() - _FILTERS):
            raise SystemExit(f"{place[1].strip()}: unknown {', '.join(sorted(unknown))}")
        if "statistics" in results:
            if "short" in words:
                from benchmarks.permuted import short

                return f"{place[1]}{short(results)}{place[4]}"
            return f"{place[1]}{seeds.table(results, filters)}{seeds.draw(results, pictures)}{place[4]}"
        link = os.path.relpath(folder / place[2], pictures) if filters or words else None
        if "fastest" in words:
            return f"{place[1]}{fastest(results, filters, link or '')}{place[4]}"
        text = tables(results, filters, link)
        picture = pictures / f"roofline-{Path(place[2]).stem}.svg"
        if roofline(results, picture):
            text += f"\n![Roofline: {results['title']}]({picture.name})\n"
        return f"{place[1]}{text}{place[4]}"

    return _PLACE.sub(replaced, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("page", type=Path, nargs="?", default=Path("docs/performance.md"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), metavar="FOLDER")
    arguments = parser.parse_args()
    page = arguments.page
    page.write_text(render(page.read_text(), arguments.results, page.parent))


if __name__ == "__main__":
    main()
