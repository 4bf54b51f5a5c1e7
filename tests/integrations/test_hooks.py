"""What ``import ksurgeon`` changes in other libraries is listed, documented, and can be switched off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ksurgeon.integrations import HOOKS

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"
SCRIPT = """
import ksurgeon
from torch import fx, utils

def hooked():
    # how often each was wrapped
    found = []
    for function in (fx.Tracer.is_leaf_module, utils.swap_tensors):
        found.append(0)
        while hasattr(function, "__wrapped__"):
            function, found[-1] = function.__wrapped__, found[-1] + 1
    return found

print(hooked())
ksurgeon.KLinear(8, 8)
ksurgeon.integrations.register()
print(hooked())
"""


def test_every_hook_is_documented():
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"| `{hook.module}` |" in text for hook in HOOKS)


@pytest.mark.parametrize(("value", "times"), [(None, 1), ("0", 1), ("1", 0)])
def test_hooks_can_be_switched_off(value, times):
    environment = {name: text for name, text in os.environ.items() if name != "KSURGEON_NO_HOOKS"}
    environment |= {} if value is None else {"KSURGEON_NO_HOOKS": value}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"[{times}, {times}]", "[1, 1]"]
