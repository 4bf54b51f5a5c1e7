"""``ksurgeon diff``."""

import json as json_module

from ksurgeon.cli.console import out, status
from ksurgeon.cli.opening import open_on
from ksurgeon.report.compare import compare, show_comparison

__all__ = ["run"]


def run(
    first: str,
    second: str,
    weights: str,
    input_size: str | None,
    seed: int,
    device: str,
    json: bool,
    everything: bool,
) -> None:
    one = open_on(first, weights, input_size, seed, device)
    other = open_on(second, weights, input_size, seed, device)
    with status("running both on the same inputs, and in turns for the latency"):
        comparison = compare(one.model, other.model, one.example_inputs)
    if json:
        print(json_module.dumps({"first": first, "second": second, **comparison.plain()}, indent=1))
        return
    show_comparison(out, (first, second), comparison, everything=everything)
