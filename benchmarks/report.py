"""Files of results as tables and images in a page: ``python -m benchmarks.report [PAGE]``.

The page says with a comment ``<!-- results FILE -->`` where the tables of a file go; what is between it and
``<!-- end -->`` is written anew. A file is of a benchmark, or the ``results.json`` of a recipe with seeds, of
which ``<!-- results FILE short -->`` asks for the least that tells what came out.
Images need matplotlib (extra ``bench``) and go beside the page.
"""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import seeds
from benchmarks.results import COPY, PEAK, READ, described, met, spread

__all__ = ["render", "roofline", "tables"]

_PLACE = re.compile(r"(<!-- results (\S+)( short)? -->\n).*?(<!-- end -->)", re.DOTALL)
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


def tables(results: dict[str, Any]) -> str:
    """Markdown: the setting, how much of what was wanted is met, and a table for each part."""
    setting = ", ".join(f"{name} {value}" for name, value in results["setting"].items() if value is not None)
    wanted = [(row, name) for row in results["rows"] for name in row["wanted"]]
    reached = sum(met(row, name) for row, name in wanted)
    lines = [f"**{results['title']}** · {setting}. Of {len(wanted)} figures wanted, {reached} are reached."]
    parts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in results["rows"]:
        parts[row["part"]].append(row)
    for part, rows in parts.items():
        others = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
        head = [part, "rows", "ours", "spread", *others]
        lines += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for row in sorted(rows, key=lambda row: _order(row, rows)):
            cells = [described(row, name) if name in row["ratios"] else "" for name in others]
            lines.append(f"| {' | '.join([row['case'], str(row['rows']), *spread(row), *cells])} |")
    return "\n".join(lines) + "\n"


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
    """The page with the results of ``folder`` in their places, and their rooflines in ``pictures``."""

    def replaced(place: re.Match[str]) -> str:
        results = json.loads((folder / place[2]).read_text())
        if "statistics" in results:
            if place[3]:
                from benchmarks.permuted import short

                return f"{place[1]}{short(results)}{place[4]}"
            return f"{place[1]}{seeds.table(results)}{seeds.draw(results, pictures)}{place[4]}"
        text = tables(results)
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
