"""Choices survive a process, and nothing in the cache's folder can do harm."""

import json
from pathlib import Path

import pytest

from ksurgeon.kernels.cache import Cache, cache_folder, cpu_model, may_tune


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ksurgeon"


def test_round_trip(folder: Path) -> None:
    Cache("cpu", "this one").put("shape", (2, 3))
    assert Cache("cpu", "this one").get("shape") == [2, 3]
    assert Cache("cpu", "another").get("shape") is None
    assert Cache("cuda", "this one").get("shape") is None
    assert [file.name for file in folder.iterdir()] == [Cache("cpu", "this one").path.name]


def test_two_processes_keep_each_other_s_choices() -> None:
    one, two = Cache("cpu", "m"), Cache("cpu", "m")
    assert one.get("a") is two.get("b") is None
    one.put("a", 1)
    two.put("b", 2)
    assert Cache("cpu", "m").all() == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"machine": "m", "choices": []}',
        b'{"machine": "m"}',
        b"[" * 10**5,
    ],
)
def test_a_damaged_file_counts_as_empty(folder: Path, content: bytes) -> None:
    cache = Cache("cpu", "m")
    folder.mkdir()
    cache.path.write_bytes(content)
    assert cache.all() == {}
    cache.put("a", 1)
    assert Cache("cpu", "m").get("a") == 1


def test_a_file_of_another_machine_under_the_same_name_is_ignored(folder: Path) -> None:
    cache = Cache("cpu", "m")
    folder.mkdir()
    cache.path.write_text(json.dumps({"machine": "other", "choices": {"a": 1}}))
    assert cache.get("a") is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache = Cache("cpu", "m")
    cache.put("a", 1)
    assert cache.get("a") == 1
    assert Cache("cpu", "m").get("a") is None


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "ksurgeon"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder().is_absolute() and "ksurgeon" in cache_folder().parts

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder().is_absolute()


def test_when_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("KSURGEON_TUNE", raising=False)
    assert may_tune() and cpu_model()
    torch.use_deterministic_algorithms(True)
    try:
        assert not may_tune()
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setenv("KSURGEON_TUNE", "0")
    assert not may_tune()
