"""Files of results: ``{"title", "setting", "rows"}``, one file for each machine and subject.

A row has ``part``, ``case``, ``rows``, ``ratios`` (each other candidate's time over ours), ``wanted`` (ratios
asked for at least) and ``us`` or another unit: the figures of every candidate, ours first. Rows with ``flop``
and ``bytes`` can be drawn as a roofline.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ksurgeon.kernels import chosen_backend, cpu
from ksurgeon.kernels.cache import cpu_model

__all__ = [
    "COPY",
    "PEAK",
    "READ",
    "add",
    "cpu_setting",
    "described",
    "gpu_setting",
    "met",
    "show",
    "spread",
    "summary",
    "time_of",
    "unit_of",
]

# Candidates that are limits: the ratio to them is the share of the limit that is reached.
PEAK, READ = "its multiplications at the peak", "reading its weights"
COPY = "moving its vectors once"
LIMITS = (PEAK, READ, COPY)
_UNITS = ("us", "MiB", "error")


def cpu_setting(threads: int) -> dict[str, Any]:
    """What the figures of a CPU depend on."""
    return {
        "machine": cpu_model(),
        "torch": torch.__version__,
        "threads": threads,
        "backend": chosen_backend(),
        "instruction set": cpu.instruction_set() if cpu.is_available() else None,
    }


def gpu_setting() -> dict[str, Any]:
    """What the figures of a GPU depend on."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "machine": properties.name,
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "backend": chosen_backend(torch.device("cuda", torch.cuda.current_device())),
        "float32 products": torch.backends.cuda.matmul.fp32_precision,
    }


def add(file: Path, title: str, setting: dict[str, Any], rows: Iterable[dict[str, Any]]) -> None:
    """Add rows to a file, in the place of those of the same part, case and number of rows.

    Raises:
        SystemExit: the file holds results of another setting.
    """
    known: dict[tuple[Any, ...], dict[str, Any]] = {}
    if file.exists():
        present = json.loads(file.read_text())
        if present["setting"] != setting:
            raise SystemExit(
                f"{file} holds results of {present['setting']}, these are of {setting}: name another file"
            )
        known = {_key(row): row for row in present["rows"]}
    known |= {_key(row): row for row in rows}
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"title": title, "setting": setting, "rows": [_rounded(row) for row in known.values()]}
    file.write_text(json.dumps(content, indent=1) + "\n")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["part"], row["case"], row["rows"]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median, first and ninth decile, and the best of some times."""
    low, *_, high = quantiles(times, n=10, method="inclusive")
    return {"median": median(times), "low": low, "high": high, "best": min(times)}


def unit_of(row: dict[str, Any]) -> str:
    """The unit of a row's figures, which is the name that they are kept under."""
    return next(unit for unit in _UNITS if unit in row)


def spread(row: dict[str, Any]) -> tuple[str, str]:
    """Median of ours with its unit, and its first to ninth decile."""
    unit = unit_of(row)
    ours = next(iter(row[unit].values()))
    scale, name = (1000, "ms") if unit == "us" and ours["median"] >= 1000 else (1, unit.replace("us", "µs"))
    if unit == "error":
        return f"{ours['median']:.4f}", ""
    middle, low, high = (_short(ours[part] / scale) for part in ("median", "low", "high"))
    return f"{middle} {name}", f"{low}–{high}"


def time_of(microseconds: float) -> str:
    """A time with its unit."""
    return f"{_short(microseconds / 1000)} ms" if microseconds >= 1000 else f"{_short(microseconds)} µs"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def met(row: dict[str, Any], name: str) -> bool:
    """Whether the ratio to ``name`` is what was wanted, as far as two digits tell."""
    return bool(float(f"{row['ratios'][name]:.2g}") >= float(f"{row['wanted'][name]:.2g}"))


def described(row: dict[str, Any], name: str) -> str:
    """The ratio to ``name``, with what was wanted."""
    ratio, wanted = row["ratios"][name], row["wanted"].get(name)
    share = name in LIMITS
    text = f"{ratio:.0%}" if share else f"{_short(ratio)}×"
    if wanted is None:
        return text
    asked = f"{wanted:.0%}" if share else f"{_short(wanted)}×"
    return f"{text} ({'' if met(row, name) else 'missed: '}≥ {asked})"


def show(title: str, rows: Iterable[dict[str, Any]]) -> None:
    """Print a table: ratios are how many times our time each of the others takes."""
    table = Table(title=title, box=None)
    for column in ("part", "case", "rows", "ours", "spread", "the others over ours (wanted)"):
        table.add_column(column, justify="right" if column in ("rows", "ours", "spread") else "left")
    for row in rows:
        ratios = ", ".join(f"{name} {described(row, name)}" for name in row["ratios"])
        table.add_row(row["part"], row["case"], str(row["rows"]), *spread(row), ratios)
    Console(width=180).print(table)
