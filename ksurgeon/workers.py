"""How many processes to use, and what became of one."""

import os
import signal

__all__ = ["cause_of_end", "cores"]

_MEANINGS = {"SIGKILL": ", as a system does that runs out of memory", "SIGXCPU": ": out of CPU time"}


def cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cause_of_end(status: int) -> str:
    """What a process died of, by its exit status."""
    if status >= 0:
        return f"its process ended with status {status}"
    name = signal.Signals(-status).name
    return f"its process was killed by {name}{_MEANINGS.get(name, '')}"
