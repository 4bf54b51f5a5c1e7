"""``python -m tests.fuzz``: as many damaged files as are asked for; the exit status says whether all held."""

import argparse
import logging
import os
import sys

from tests.fuzz.formats import FORMATS
from tests.fuzz.run import run, show


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to see one again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", action="append", choices=list(FORMATS), default=[], help="this format only")
    given = parser.parse_args()
    logging.disable()
    results = run(given.cases, given.seed, given.workers, given.only, given.first)
    show(results)
    return 1 if any(result.failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
