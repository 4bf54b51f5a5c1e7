"""What one model may take: CPU time and memory, as far as the system can hold a process to it."""

import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["OutOfTimeError", "cpu_time", "give_way", "memory", "physical_memory"]


class OutOfTimeError(BaseException):
    """The time is up; no ``except Exception`` on the way holds it."""


@contextmanager
def cpu_time(seconds: int) -> Iterator[None]:
    """Inside, Python code is interrupted after so much CPU time, and the process killed after twice as much.

    Raises:
        OutOfTimeError: the time is up.
    """
    if sys.platform == "win32":
        yield
        return
    import resource

    def ring(*_: object) -> None:
        raise OutOfTimeError

    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    end = math.ceil(used.ru_utime + used.ru_stime) + 2 * seconds  # whole seconds are what a limit knows
    resource.setrlimit(resource.RLIMIT_CPU, (end if most < 0 else min(end, most), most))
    signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (most, most))


def memory(gibibytes: float) -> None:
    """Let allocations of this process fail beyond so much memory."""
    if sys.platform != "win32":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = int(gibibytes * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if most < 0 else min(wanted, most), most))


def give_way() -> None:
    """Let the system, where it runs out of memory, end this process before others."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def physical_memory() -> float:
    """Memory of the machine in GiB; 16 where it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return 16.0
