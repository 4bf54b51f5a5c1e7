"""``ksurgeon diff``."""

import json as json_module

from ksurgeon.cli.console import out, status
from ksurgeon.cli.opening import open_on
from ksurgeon.report.compare import compare, show_comparison
from ksurgeon.surgery.record import record_of

__all__ = ["run"]


def run(
    first: str,
    second: str,
    weights: str,
    input_size: str | None,
    seed: int,
    device: str,
    trust_remote_code: bool,
    json: bool,
    everything: bool,
) -> None:
    one = open_on(first, weights, input_size, seed, device, trust_remote_code)
    other = open_on(second, weights, input_size, seed, device, trust_remote_code)
    # A converted model's record tells of its inputs; without one they are those of the first model.
    recorded = next((loaded for loaded in (one, other) if record_of(loaded.model) is not None), one)
    with status("running both on the same inputs, interleaved for latency"):
        comparison = compare(one.model, other.model, recorded.example_inputs)
    if json:
        print(json_module.dumps({"first": first, "second": second, **comparison.plain()}, indent=1))
        return
    show_comparison(out, (first, second), comparison, everything=everything)
