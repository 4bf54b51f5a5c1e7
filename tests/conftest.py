"""Tests do not depend on what was measured on a machine, nor leave anything in its caches."""

import os
import signal

os.environ["KSURGEON_TUNE"] = "0"

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background; tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
