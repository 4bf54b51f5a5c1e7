"""Results of ``benchmarks.fit_models`` as tables in a page."""

import re
from itertools import product
from pathlib import Path
from typing import Any

__all__ = ["STRUCTURES", "WAYS", "render"]

STRUCTURES = ("low rank, uneven", "low rank", "pruned", "Monarch", "K-matrix + low rank", "K-matrix")
WAYS = ("weight", "inputs", "both sides", "compensated")
_SHOWN = {"both sides": "inputs and output gradients", "compensated": "error propagation"}

_PLACE = re.compile(r"(<!-- fits of (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(results: dict[str, Any], page: Path) -> None:
    """Write the tables of every model where the page has ``<!-- fits of MODEL -->`` … ``<!-- end -->``."""
    if not page.exists():
        return
    text = page.read_text(encoding="utf-8")

    def filled(match: re.Match[str]) -> str:
        entry = results.get(match[2])
        return match[0] if entry is None else match[1] + _tables(entry) + match[3]

    page.write_text(_PLACE.sub(filled, text), encoding="utf-8")


def _tables(entry: dict[str, Any]) -> str:
    setting = ", ".join(f"{name} {value}" for name, value in entry["setting"].items() if value is not None)
    return f"{setting}. Unmodified: **{entry['untouched']:.4f}**.\n\n{_whole(entry)}"


def _whole(entry: dict[str, Any]) -> str:
    """A line for each structure and way, a column for each share."""
    rows = {(row["structure"], row["way"], row["share"]): row for row in entry["rows"]}
    shares = sorted({share for *_, share in rows}, reverse=True)
    lines = [
        f"| structure | fitted to | {' | '.join(f'{share:.0%}' for share in shares)} |",
        "|---|---|" + "---|" * len(shares),
    ]
    for structure, way in product(STRUCTURES, WAYS):
        if not any((structure, way, share) in rows for share in shares):
            continue
        found = [rows.get((structure, way, share)) for share in shares]
        figures = [_figure(row, share) for row, share in zip(found, shares, strict=True)]
        lines.append(f"| {structure} | {_SHOWN.get(way, way)} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def _figure(row: dict[str, Any] | None, share: float) -> str:
    if row is None:
        return "–"
    apart = f" (keeps {row['kept']:.0%})" if abs(row["kept"] - share) > 0.03 else ""
    return f"{row['figure']:.3f}{apart}"
