"""Is anything else running? Figures of a busy machine are not worth keeping."""

import os
import time
from pathlib import Path

__all__ = ["busy_share", "check_quiet"]

_MOST = 0.05
_SECONDS = 2.0


def busy_share(seconds: float = _SECONDS) -> float:
    """The share of all cores' time that other programs take, from 0 to 1, over so many idle seconds."""
    if not Path("/proc/stat").exists():  # the mean over a minute, in which this program may have run, too
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    before = _ticks()
    time.sleep(seconds)
    idle, total = (now - then for now, then in zip(_ticks(), before, strict=True))
    return 1 - idle / max(total, 1)


def check_quiet(anyway: bool = False) -> float:
    """The busy share, to be kept beside the figures.

    Raises:
        SystemExit: others take more than 5 % of the cores' time, and ``anyway`` is not set.
    """
    share = busy_share()
    if share > _MOST and not anyway:
        raise SystemExit(
            f"other programs take {share:.0%} of this machine's cores (allowed: {_MOST:.0%}): wait until it "
            "is quiet, or pass --busy for figures that are not to be kept"
        )
    return share


def _ticks() -> tuple[int, int]:
    """Idle and total ticks of all cores since the system started."""
    fields = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)
