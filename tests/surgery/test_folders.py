"""Folders that take a place whole: through kill -9, beside readers, and where nothing can be written."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import FolderError
from ksurgeon.surgery import folders, storage
from ksurgeon.surgery.folders import require_writable, written_whole

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")


def write(target, text):
    with written_whole(target) as folder:
        (folder / "file").write_text(text)


def killed(target, where):
    """A save in another process, killed while it writes, or right before or after the exchange."""
    process = os.fork()
    if process == 0:
        real = folders._exchange

        def exchange(*places):
            if where == "after":
                real(*places)
            os.kill(os.getpid(), signal.SIGKILL)

        folders._exchange = exchange
        with written_whole(target) as folder:
            (folder / "file").write_text("new")
            if where == "writing":
                os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("where", "there"), [("writing", "old"), ("before", "old"), ("after", "new")])
def test_a_kill_leaves_one_of_both_and_litter_that_the_next_save_removes(tmp_path, where, there):
    target = tmp_path / "model"
    write(target, "old")
    killed(target, where)
    assert (target / "file").read_text() == there
    assert len(names(tmp_path)) == 2
    write(target, "newer")
    assert (target / "file").read_text() == "newer" and names(tmp_path) == ["model"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks for renameat2")
def test_two_folders_are_exchanged_in_one_step(tmp_path, monkeypatch):
    write(tmp_path / "model", "old")
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("renamed, so that there was a gap"))
    write(tmp_path / "model", "new")
    assert (tmp_path / "model" / "file").read_text() == "new" and names(tmp_path) == ["model"]


def test_where_nothing_can_be_exchanged_folders_are_renamed(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_system_swap", lambda: None)
    for text in ("old", "new"):
        write(tmp_path / "model", text)
        assert (tmp_path / "model" / "file").read_text() == text and names(tmp_path) == ["model"]


def test_what_is_not_surely_litter_stays(tmp_path):
    target = tmp_path / "model"
    others = [".model", ".model.mine", ".model.abcdefgh.part", ".other.abcdefgh.ksurgeon-part"]
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis").write_text("mine")
    (tmp_path / ".model.12345678.ksurgeon-part").symlink_to(tmp_path / ".model")
    with written_whole(target) as living:
        (living / "file").write_text("slow")
        write(target, "quick")
        assert (living / "file").read_text() == "slow"
    assert (target / "file").read_text() == "slow"
    assert names(tmp_path) == sorted([*others, ".model.12345678.ksurgeon-part", "model"])
    assert all((tmp_path / name / "thesis").read_text() == "mine" for name in others)


def test_a_load_reads_one_save_while_another_replaces_it(tmp_path, monkeypatch):
    x = torch.randn(2, 16)
    models = [
        ksurgeon.replace_modules(nn.Sequential(nn.Linear(16, 16)), rule, x) for rule in ("linear", "low_rank")
    ]
    ksurgeon.save(models[0], tmp_path / "model")
    real, calls = storage.open_tensors, []

    def replaced_meanwhile(folder):
        calls.append(folder)
        if len(calls) == 1:
            ksurgeon.save(models[1], folder)
        return real(folder)

    monkeypatch.setattr(storage, "open_tensors", replaced_meanwhile)
    loaded = ksurgeon.load(tmp_path / "model", model=nn.Sequential(nn.Linear(16, 16)))
    assert torch.equal(loaded(x), models[1](x)) and len(calls) == 2


def test_tensors_that_are_open_stay_what_they_were(tmp_path):
    model = ksurgeon.replace_modules(nn.Sequential(nn.Linear(16, 16)), "low_rank", torch.randn(2, 16))
    before = model[0].bias.detach().clone()
    stored = storage.open_tensors(ksurgeon.save(model, tmp_path / "model"))
    torch.nn.init.zeros_(model[0].bias)
    shutil.rmtree(tmp_path / "model")
    ksurgeon.save(model, tmp_path / "model")
    assert torch.equal(stored.read()["0.bias"], before)


@pytest.mark.parametrize(
    "place",
    [
        "file/model",
        "file/a/b",
        "x" * 300,
        "x/" * 3 + "y" * 300,
        "loose/model",
        "\N{LATIN SMALL LETTER O WITH DIAERESIS}" * 200,
    ],
)
def test_what_cannot_be_written_is_told_and_leaves_nothing(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loose").symlink_to(tmp_path / "file" / "nowhere")
    with pytest.raises(FolderError, match="cannot be written"):
        require_writable(tmp_path / place)
    assert names(tmp_path) == ["file", "loose"] and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("place", ["new", "new/a/b", "x" * 255, "old"])
def test_what_can_be_written_is_left_as_it_is(tmp_path, place):
    write(tmp_path / "old", "old")
    require_writable(tmp_path / place)
    assert names(tmp_path) == ["old"] and (tmp_path / "old" / "file").read_text() == "old"
    write(tmp_path / place, "new")
    write(tmp_path / place, "newer")
    assert (tmp_path / place / "file").read_text() == "newer"
    assert set(names(tmp_path)) == {"old", Path(place).parts[0]}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(FolderError, match="ermission"):
        require_writable(tmp_path / "locked" / "a" / "b")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="asks for /proc")
def test_a_file_system_that_takes_nothing():
    with pytest.raises(FolderError, match="cannot be written"):
        require_writable(Path("/proc/nope/x"))
