"""A small part of ``make fuzz``, the same cases at every run."""

import pytest

from tests.fuzz.formats import FORMATS
from tests.fuzz.run import case, made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_give_errors_of_ksurgeon(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made([name], tmp_path)
    FORMATS[name].read(tmp_path / name)
    results = [case(name, tmp_path, number, seed=7) for number in range(25)]
    assert [result for result in results if result.foreign] == []
    assert any(result.outcome != "read" for result in results) or name in ALWAYS_READ


ALWAYS_READ = {"modules.json", "kernel cache", "images"}
"""A damaged one counts as empty, or as an example that cannot be read."""
