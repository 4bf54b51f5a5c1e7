"""Whole models, original and converted, run in turns: ``python -m benchmarks.convert --json FILE``."""

import argparse
import json
import platform
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ksurgeon import convert
from ksurgeon.models.opening import open_model
from ksurgeon.report.measure import measure

CASES = (
    ("torchvision:shufflenet_v2_x0_5", "shuffle"),
    ("torchvision:shufflenet_v2_x1_0", "shuffle"),
    ("torchvision:shufflenet_v2_x2_0", "shuffle"),
    ("resnet50", "shuffle"),
    ("resnet50", "pointwise"),
    ("mobilenetv3_large_100", "pointwise"),
    ("vit_tiny_patch16_224", "linear"),
)


def run(name: str, rule: str) -> dict[str, object]:
    """One model: parameters, multiplications and latency before and after."""
    loaded = open_model(name, weights="random")
    conversion = convert(loaded.model, rule, loaded.example_inputs, source=loaded.source)
    outcome = measure(conversion, loaded.example_inputs)
    return {
        "model": name,
        "rule": rule,
        "seconds_to_fit": round(sum(result.seconds for result in conversion.results), 2),
        **outcome.model_dump(exclude={"parts", "found"}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("cases", nargs="*", metavar="MODEL=RULE", help="such as resnet50=shuffle")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = [tuple(case.split("=", 1)) for case in arguments.cases] or CASES
    table = Table(title=f"latency, batch 1, {arguments.threads} thread(s), random weights", box=None)
    for column in ("model", "rule", "parameters", "multiplications", "ms before", "ms after", "ratio"):
        table.add_column(column, justify="left" if column in ("model", "rule") else "right")
    rows = []
    for name, rule in cases:
        row = run(name, rule)
        rows.append(row)
        (p, q), (m, n), (s, t) = row["parameters"], row["multiplications"], row["latency"]  # type: ignore[misc]
        table.add_row(name, rule, f"{q / p:.2f}×", f"{n / m:.2f}×", f"{s:.1f}", f"{t:.1f}", f"{t / s:.2f}×")
        print(f"{name} {rule}: {s:.1f} → {t:.1f} ms", flush=True)
    Console(width=120).print(table)
    if arguments.json:
        setting = {"torch": torch.__version__, "threads": arguments.threads, "machine": platform.machine()}
        arguments.json.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
