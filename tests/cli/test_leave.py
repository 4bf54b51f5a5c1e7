"""No command calls what a folder or a recipe names, unless it is told to."""

import json
import sys

import pytest

from tests.cli.conftest import LEAVE

RULE = ("--rule", "linear")
COMMANDS = {
    "find": ("find", "folder"),
    "convert": ("convert", "folder", *RULE, "-o", "out"),
    "convert, dry run": ("convert", "folder", *RULE, "--dry-run"),
    "plan": ("plan", "folder", "--budget", "params=0.5", "--data", "a.txt"),
    "revert": ("revert", "folder", "-o", "out"),
    "export": ("export", "folder", "-o", "out.onnx"),
    "diff": ("diff", "folder", "folder"),
    "distill": ("distill", "folder", "-d", "a.txt", "-o", "out"),
    "finetune": ("finetune", "folder", "-d", "a.txt", "-o", "out"),
    "run": ("run", "recipe.toml", "-o", "out"),
}
RECIPE = """
schema = 1
name = "theirs"
prepare = "theirs.py:touch"
variants = [{ name = "one" }]
model = { name = "test_resnet" }
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A folder and a recipe that have a function called, and the file that says that it was."""
    (tmp_path / "folder").mkdir()
    source = {"kind": "function", "name": "theirs:touch"}
    (tmp_path / "folder" / "ksurgeon.json").write_text(json.dumps({"schema": 1, "source": source}))
    (tmp_path / "folder" / "model.safetensors").write_bytes(b"\x02" + b"\0" * 7 + b"{}")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "a.txt").write_text("a text\n" * 20)
    touched = tmp_path / "touched"
    monkeypatch.delitem(sys.modules, "theirs", raising=False)  # importing it is to be seen in every test
    code = f"open({str(touched)!r}, 'w')\ndef touch(*_):\n    raise ValueError('called')\n"
    (tmp_path / "theirs.py").write_text(code)
    return touched


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_function_that_a_file_names_is_called_by_leave_only(run, theirs, command):
    done = run(*command)
    assert done.status == 1 and LEAVE in done.err and "theirs" in done.err
    assert not theirs.exists()
    done = run(*command, LEAVE)
    assert done.status == 1 and "called" in done.err
    assert theirs.exists()


def test_showing_a_record_calls_nothing(run, theirs):
    assert run("show", "folder").status == 0
    assert not theirs.exists()
