"""Whatever a model does to its process, the survey goes on."""

import pytest

from tests.survey.workers import scripted
from tools.survey import pool
from tools.survey.limits import cpu_time
from tools.survey.worker import Task

EXPECTED = {
    "crashes": "killed by SIGSEGV",
    "grows": "RuntimeError",
    "spins": "more than 1 seconds of CPU time",
    "well": "",
    "well too": "",
}


def test_every_model_gets_a_result(capfd):
    tasks = [Task("timm", name) for name in EXPECTED]
    results = list(pool.look_at_all(tasks, workers=2, seconds=1, gibibytes=16, work=scripted))
    assert sorted(result.name for result in results) == sorted(EXPECTED)
    for result in results:
        assert result.state == ("failed" if EXPECTED[result.name] else "analysed"), result
        assert EXPECTED[result.name] in result.reason
        assert result.state == "failed" or result.seconds == 1  # thread
    assert capfd.readouterr() == ("", "")


def test_a_model_that_waits_for_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(pool, "_PATIENCE", 0)
    (result,) = pool.look_at_all([Task("timm", "sleeps")], workers=1, seconds=60, gibibytes=16, work=scripted)
    assert result.state == "failed" and "did not answer" in result.reason


def test_workers_end_with_the_survey():
    results = pool.look_at_all(
        [Task("timm", "well"), Task("timm", "sleeps")], workers=1, seconds=60, gibibytes=16, work=scripted
    )
    assert next(results).name == "well"
    assert len(pool._SPAWN.active_children()) == 1
    results.close()
    assert pool._SPAWN.active_children() == []


def test_a_process_is_not_killed_before_its_time_is_up_twice(monkeypatch):
    resource = pytest.importorskip("resource")
    limits: list[tuple[int, int]] = []
    used = resource.struct_rusage((5.6, 0.3, *[0] * 14))
    monkeypatch.setattr(resource, "getrusage", lambda _: used)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (-1, -1))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    with cpu_time(1):
        pass
    assert limits == [(8, -1), (-1, -1)]
