"""``ksurgeon diff``."""

import json as json_module

from ksurgeon.cli.commands import Diff
from ksurgeon.cli.console import out, status
from ksurgeon.cli.opening import open_asked
from ksurgeon.report.compare import compare, show_comparison
from ksurgeon.surgery.record import record_of

__all__ = ["run"]


def run(asked: Diff) -> None:
    one = open_asked(asked.first, asked)
    other = open_asked(asked.second, asked)
    # A converted model's record tells of its inputs; without one they are those of the first model.
    recorded = next((loaded for loaded in (one, other) if record_of(loaded.model) is not None), one)
    with status("running both on the same inputs, interleaved for latency"):
        comparison = compare(one.model, other.model, recorded.example_inputs)
    if asked.json:
        print(
            json_module.dumps({"first": asked.first, "second": asked.second, **comparison.plain()}, indent=1)
        )
        return
    show_comparison(out, (asked.first, asked.second), comparison, everything=asked.all)
