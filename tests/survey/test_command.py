"""``python -m tools.survey``, end to end on one small model, and what it refuses before it begins."""

import json
import sys

import pytest

from ksurgeon.cli import main
from tests.cli.conftest import Ran
from tools import survey as surveying
from tools.survey import command
from tools.survey.__main__ import app


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command in an empty folder and say what it printed and how it ended."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["survey", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main(app, "survey")
        printed = capsys.readouterr()
        return Ran(ended.value.code, printed.out, printed.err)

    return run


def test_a_survey_writes_results_and_a_page(run, tmp_path):
    arguments = ("--json", "s.jsonl", "--library", "timm", "--only", "test_mamba*", "--workers", 1)
    done = run(*arguments, "--table", "s.md", "--convert")
    assert done.status == 0, done.err
    assert "| timm | 1 of " in done.out and "1/1 timm test_mambaout: analysed" in done.err
    (line,) = (tmp_path / "s.jsonl").read_text().splitlines()
    assert json.loads(line)["trip"]["replaced"] > 0 and "missed" not in json.loads(line)
    assert "[s.csv](s.csv)" in (tmp_path / "s.md").read_text()
    assert "timm,test_mambaout," in (tmp_path / "s.csv").read_text()
    again = run(*arguments)
    assert again.status == 0 and again.out == done.out and "1/1" not in again.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--json", "absent/s.jsonl"), "absent"),
        (("--json", "s.jsonl", "--table", "absent/s.md"), "absent"),
        (("--json", "s.jsonl", "--library", "keras"), "keras"),
        (("--json", "s.jsonl", "--library", "timm", "--only", "vgg999"), "vgg999"),
        (("--json", "notes.txt", "--library", "timm"), "line 1 of notes.txt"),
    ],
)
def test_what_cannot_be_is_refused_at_once(run, tmp_path, arguments, said):
    (tmp_path / "notes.txt").write_text("notes\n")
    done = run(*arguments)
    assert done.status == 1 and said in done.err and "Traceback" not in done.err
    assert (tmp_path / "notes.txt").read_text() == "notes\n"


@pytest.mark.parametrize("arguments", [("--json=~/x.jsonl",), ("--json=s.jsonl", "--table=~/x.md")])
def test_a_place_that_cannot_be_written_is_told_before_the_work(run, tmp_path, monkeypatch, arguments):
    (tmp_path / "home").write_text("mine")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    done = run(*arguments)
    said = " ".join(done.err.split())
    assert done.status == 1 and ("home is a file" in said or "there is no folder" in said), said
    assert not (tmp_path / "~").exists()


def test_an_interrupt_says_how_to_go_on(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(surveying, "survey", interrupted)
    done = run("--json", "s.jsonl", "--library", "timm", "--only", "test_vit")
    assert done.status == 130 and "goes on from there" in done.err and "nothing was written" not in done.err


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "page.md").mkdir()
    with pytest.raises(command.FolderError):
        command._write(tmp_path / "page.md", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]
