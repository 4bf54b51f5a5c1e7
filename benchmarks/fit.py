"""Factorisation of dense matrices beside lazylinop's ``ksd`` and pyfaust: ``python -m benchmarks.fit``.

Every case runs in a process of its own, ours and theirs in turns on the same Gaussian matrix in double
precision. Beside the times stand the errors, and the most memory that our process held.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.results import add, cpu_setting, show, summary
from ksurgeon.fit.factorise import factorise
from ksurgeon.fit.refine import relative_error
from ksurgeon.kmatrix.structures import Monarch
from ksurgeon.patterns.pattern import Pattern, butterfly_patterns

_FASTER, _NEARER = 3.0, 1 / 1.001
# Seconds between turns: threads of one library's linear algebra spin on for a while, beside the next one's.
_REST = 0.5


def chains(n: int) -> dict[str, tuple[Pattern, ...]]:
    """The chains by name."""
    root = isqrt(n)
    return {
        "radix 2": butterfly_patterns((2,) * (n.bit_length() - 1)),
        "radix 8": butterfly_patterns(_radices(n, 8)),
        "Monarch, √n blocks": butterfly_patterns((root, n // root)),
        "Monarch, 4 blocks": Monarch(blocks=4).patterns(n, n),
    }


def _radices(n: int, radix: int) -> tuple[int, ...]:
    found = []
    while n % radix == 0:
        found.append(radix)
        n //= radix
    return tuple(found) if n == 1 else (*found, n)


class Candidate(NamedTuple):
    """What to time, and the relative error of what it makes."""

    call: Callable[[], Any]
    error_of: Callable[[Any], float]


def _candidates(weight: torch.Tensor, chain: tuple[Pattern, ...]) -> dict[str, Candidate]:
    array, norm = weight.numpy(), torch.linalg.vector_norm(weight).item()

    def error_of(made: Any) -> float:
        return torch.dist(torch.from_numpy(made.toarray()), weight).item() / norm

    found = {"ours": Candidate(lambda: factorise(weight, chain), lambda made: relative_error(made, weight))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lazylinop.butterfly import Chain, ksd

        theirs = Chain([tuple(pattern) for pattern in reversed(chain)])
        found["lazylinop ksd"] = Candidate(lambda: ksd(array, theirs), error_of)
        if max(pattern.b for pattern in chain) == 2:
            from pyfaust.fact import butterfly

            found["pyfaust butterfly"] = Candidate(lambda: butterfly(array, type="bbtree"), error_of)
    return found


def _measure(n: int, case: str, rounds: int) -> list[dict[str, Any]]:
    """Rows of times and of errors; the process must have done nothing else."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n, n, dtype=torch.float64, generator=generator)
    times: dict[str, list[float]] = defaultdict(list)
    errors: dict[str, float] = {}
    memory = 0.0
    for number in range(rounds):
        for name, candidate in _candidates(weight, chains(n)[case]).items():
            time.sleep(_REST)
            begin = time.perf_counter()
            made = candidate.call()
            times[name].append((time.perf_counter() - begin) * 1e6)
            if number == 0:
                memory = memory or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
                errors[name] = candidate.error_of(made)
    us = {name: summary(values) for name, values in times.items()}
    others = [name for name in us if name != "ours"]
    row = {"case": case, "rows": n}
    return [
        {"part": "time", **row}
        | {"ratios": {name: us[name]["median"] / us["ours"]["median"] for name in others}}
        | {"wanted": dict.fromkeys(others, _FASTER), "us": us, "MiB held by ours": memory},
        {"part": "relative error", **row}
        | {"ratios": {name: errors[name] / errors["ours"] for name in others}}
        | {"wanted": dict.fromkeys(others, _NEARER)}
        | {"error": {name: summary([error, error]) for name, error in errors.items()}},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--cases", nargs="+", default=list(chains(1024)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/fit.json"))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        size, case = arguments.worker
        torch.set_num_threads(arguments.threads)
        print(json.dumps(_measure(int(size), case, arguments.rounds)))
        return
    for size in arguments.sizes:
        for case in arguments.cases:
            command = [sys.executable, "-m", "benchmarks.fit", "--worker", str(size), case]
            command += ["--rounds", str(arguments.rounds), "--threads", str(arguments.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows = json.loads(done.stdout.splitlines()[-1])
            add(arguments.output, "Factorisation", cpu_setting(arguments.threads), rows)
            show(case, rows)


if __name__ == "__main__":
    main()
