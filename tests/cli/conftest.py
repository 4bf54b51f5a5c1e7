import sys
from dataclasses import dataclass

import pytest

from ksurgeon.cli import main


@dataclass
class Ran:
    status: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a command line in an empty folder and say what it printed and how it ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ksurgeon", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Ran(ended.value.code, printed.out, printed.err)

    return run


MODEL = "tests.zoo:shufflenet_v1_g4"
SIZE = ("--input-size", "3x32x32")
LEAVE = "--trust-remote-code"
"""To call the function that MODEL is made by, where a folder names it."""
