"""Which models are looked at, and the file that keeps what they told."""

import pytest

from ksurgeon.errors import FolderError, ModelNotFoundError, RecordError
from tools.survey import walk
from tools.survey.result import Result, Trip, open_results
from tools.survey.walk import choose, survey
from tools.survey.worker import Task

ONE, TWO, THREE = (Task("timm", name) for name in ("one", "two", "three"))


@pytest.fixture
def looked(monkeypatch):
    """Tasks that were looked at; each model is analysed at once."""
    done: list[Task] = []

    def look_at_all(tasks, **_):
        for task in tasks:
            done.append(task)
            trip = Trip(replaced=1) if task.convert else None
            yield Result(library=task.library, name=task.name, state="analysed", trip=trip)

    monkeypatch.setattr(walk, "look_at_all", look_at_all)
    return done


def test_models_are_chosen_by_library_number_and_name():
    assert len(choose(["timm"], every=10)) == -(-len(choose(["timm"])) // 10)
    assert choose(["torchvision"], only=["swin_?", "alexnet"]) == [
        Task("torchvision", name) for name in ("alexnet", "swin_b", "swin_s", "swin_t")
    ]
    assert all(task.convert for task in choose(["timm"], every=40, convert=True))


@pytest.mark.parametrize(("arguments", "said"), [((["keras"],), "keras"), ((["timm"], 1, ["nine"]), "nine")])
def test_what_there_is_not_is_refused(arguments, said):
    with pytest.raises(ModelNotFoundError, match=said):
        choose(*arguments)


def test_a_survey_goes_on_where_it_was(tmp_path, looked):
    path = tmp_path / "results.jsonl"
    survey(path, [ONE, TWO])
    with path.open("a") as file:
        file.write('{"library": "timm", "na')  # interrupted here
    results = survey(path, [ONE, TWO, THREE])
    assert looked == [ONE, TWO, THREE]
    assert [result.name for result in results] == ["one", "two", "three"]
    assert results == open_results(path)


def test_a_model_that_was_not_converted_is_looked_at_again(tmp_path, looked):
    path = tmp_path / "results.jsonl"
    survey(path, [ONE])
    for _ in range(2):
        results = survey(path, [ONE._replace(convert=True)])
    assert [task.convert for task in looked] == [False, True]
    assert [result.trip for result in results] == [Trip(replaced=1)]
    assert survey(path, [ONE]) == results


def test_models_that_failed_are_looked_at_again_where_that_is_wanted(tmp_path, looked):
    path = tmp_path / "results.jsonl"
    lines = [
        Result(library="timm", name="one", state="failed", reason="took too long"),
        Result(library="timm", name="two", state="analysed", trip=Trip(failed="no memory")),
        Result(library="timm", name="three", state="analysed", trip=Trip(replaced=1)),
    ]
    path.write_text("".join(line.model_dump_json() + "\n" for line in lines))
    survey(path, (ONE, TWO, THREE))
    assert looked == []
    survey(path, (ONE, TWO, THREE), again=True)
    assert looked == [ONE, TWO]
    assert [result.state for result in open_results(path)][-2:] == ["analysed", "analysed"]


def test_progress_is_told(tmp_path, looked):
    told: list[tuple[int, int, str]] = []
    survey(tmp_path / "results.jsonl", [ONE, TWO], progress=lambda *said: told.append(said))
    assert told == [(0, 2, "timm one: analysed"), (1, 2, "timm two: analysed"), (2, 2, "")]


@pytest.mark.parametrize(
    "content", ['{"model": 3}\n', "some notes\n", "some notes", '{"library": "timm"}\n{"x"']
)
def test_a_file_of_another_kind_is_refused_and_kept(tmp_path, looked, content):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(RecordError, match=r"line 1 of .*notes.txt"):
        survey(path, [ONE])
    assert path.read_text() == content and not looked


def test_a_file_that_cannot_be_made_is_told(tmp_path, looked):
    with pytest.raises(FolderError, match="absent"):
        survey(tmp_path / "absent" / "results.jsonl", [ONE])
