"""``ksurgeon survey``, end to end on one small model, and what it refuses before it begins."""

import json

import pytest

from ksurgeon import survey as surveying
from ksurgeon.cli import survey as command


def test_a_survey_writes_results_and_a_page(run, tmp_path):
    arguments = ("survey", "--json", "s.jsonl", "--library", "timm", "--only", "test_mamba*", "--workers", 1)
    done = run(*arguments, "--table", "s.md", "--convert")
    assert done.status == 0, done.err
    assert "| timm | 1 of " in done.out and "1/1 timm test_mambaout: analysed" in done.err
    (line,) = (tmp_path / "s.jsonl").read_text().splitlines()
    assert json.loads(line)["trip"]["replaced"] > 0 and "missed" not in json.loads(line)
    assert "| test_mambaout |" in (tmp_path / "s.md").read_text()
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
    done = run("survey", *arguments)
    assert done.status == 1 and said in done.err and "Traceback" not in done.err
    assert (tmp_path / "notes.txt").read_text() == "notes\n"


def test_an_interrupt_says_how_to_go_on(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(surveying, "survey", interrupted)
    done = run("survey", "--json", "s.jsonl", "--library", "timm", "--only", "test_vit")
    assert done.status == 130 and "goes on from there" in done.err and "nothing was written" not in done.err


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "page.md").mkdir()
    with pytest.raises(command.FolderError):
        command._write(tmp_path / "page.md", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]
