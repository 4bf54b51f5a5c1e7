"""Tests do not depend on what was measured on a machine, nor leave anything in its caches. Their random
numbers are those of TESTS_SEED and of the test's name, so that a run can be had again."""

import os
import random
import signal
import zlib

import numpy as np
import pytest
import torch
from hypothesis import settings

from ksurgeon.kernels import cpu

if cpu.is_available():
    from ksurgeon.kernels.cpu.native import library

    library().ks_insist(1)  # on several threads where a test asks for them, whatever else runs

os.environ["KSURGEON_TUNE"] = "0"
SEED = int(os.environ.get("TESTS_SEED", "0"))

settings.register_profile("same", derandomize=not SEED)  # of hypothesis; another seed lets it look for others
settings.load_profile("same")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background; tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    seed = zlib.crc32(f"{SEED} {item.nodeid}".encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
