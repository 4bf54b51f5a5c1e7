"""Folders of strangers: no function of theirs is called, and none of their numbers is believed."""

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ksurgeon
from ksurgeon import FolderError, RecordError, Rule, SurgeryError
from ksurgeon.errors import KsurgeonError
from ksurgeon.train.teacher import find_teacher
from tests import zoo

X = zoo.example("mlp")
called = []


def mlp():
    """What the folders here name; they say who called it."""
    called.append("mlp")
    return zoo.mlp()


RULE = Rule(name="r", replace=[{"find": "linear", "with": {"structure": "kaleidoscope"}, "start": "random"}])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = ksurgeon.replace_modules(zoo.mlp().eval(), RULE, X, source=f"{__name__}:mlp")
    return ksurgeon.save(model, tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved, tmp_path):
    called.clear()
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit(folder, change, file="ksurgeon.json"):
    data = json.loads((folder / file).read_text())
    change(data)
    (folder / file).write_text(json.dumps(data))


def test_a_function_of_a_folder_is_called_by_leave_only(folder):
    with pytest.raises(RecordError, match=rf"function {__name__}:mlp\(\).*trust_remote_code=True.*model="):
        ksurgeon.load(folder)
    assert called == []
    loaded = ksurgeon.load(folder, trust_remote_code=True)
    assert called == ["mlp"]
    assert torch.equal(ksurgeon.load(folder, zoo.mlp())(X), loaded(X))


@pytest.mark.parametrize("leave", [False, True])
def test_leave_is_for_what_comes_after_too(folder, tmp_path, leave):
    """A changed model is built again when it is saved, and its original is the teacher of a training."""
    model = ksurgeon.load(folder, **({"trust_remote_code": True} if leave else {"model": zoo.mlp()}))
    called.clear()
    if leave:
        find_teacher(model)
        assert called
    else:
        with pytest.raises(RecordError, match="function"):
            find_teacher(deepcopy(model))
    called.clear()
    model.extra = nn.Linear(3, 3)
    ksurgeon.save(model, tmp_path / "changed")
    assert bool(called) == leave


def test_a_function_that_the_user_named_needs_no_leave():
    model = ksurgeon.replace_modules(zoo.mlp().eval(), RULE, X, source=f"{__name__}:mlp")
    called.clear()
    find_teacher(model)
    assert called


HUGE = {"structure": "chain", "factors": [[1, 10**9, 64, 1], [1, 64, 10**9, 1]]}
RECORDS = {
    "stage": lambda r: r["operations"][0].update(stage=10**9),
    "negative stage": lambda r: r["operations"][0].update(stage=-1),
    "parts": lambda r: r["operations"][0].update(parts=0),
    "kind": lambda r: r["operations"][0].update(kind="nonsense"),
    "width": lambda r: r["operations"][0]["structure"].update(width=10**6),
    "expansion": lambda r: r["operations"][0]["structure"].update(expansion=2**61 - 1),
    "more than the tensors": lambda r: r["operations"][0]["structure"].update(expansion=60),
    "radices": lambda r: r["operations"][0]["structure"].update(radix=[1] * 10**5),
    "chain": lambda r: r["operations"][0].update(structure=HUGE),
    "butterfly": lambda r: r["operations"][0].update(structure={"structure": "butterfly"}),
    "twice": lambda r: r["operations"].append(r["operations"][0]),
    "parameter": lambda r: r["operations"][0].update(
        parameter="ght", path="up.weight", facts={"transposed": 1}
    ),
    "facts": lambda r: r["operations"][0].update(facts={"transposed": [1]}),
    "number": lambda r: r.update(seed=2**70),
    "dtype that is a function": lambda r: r.update(buffers={"x": "load"}),
    "no dtype": lambda r: r.update(buffers={"x": "nothing"}),
    "buffer that is a parameter": lambda r: r.update(buffers={"up.bias": "float32"}),
    "buffer nowhere": lambda r: r.update(buffers={"zz.y": "float32"}),
}


def refused(folder, match=None):
    """Loading fails, and leaves a model that was given as it was."""
    given = zoo.mlp()
    before, state = str(given), {name: tensor.clone() for name, tensor in given.state_dict().items()}
    with pytest.raises(KsurgeonError, match=match):
        ksurgeon.load(folder, given)
    assert str(given) == before and given.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in given.state_dict().items())


@pytest.mark.parametrize("change", RECORDS.values(), ids=RECORDS)
def test_a_record_is_checked_before_anything_is_made(folder, change):
    edit(folder, change)
    refused(folder)


def test_example_inputs_have_a_limit(tmp_path):
    x = torch.randn(2, 12, 4, 4)
    model = ksurgeon.replace_modules(nn.Sequential(nn.ChannelShuffle(3), nn.Conv2d(12, 3, 1)), "shuffle", x)
    folder = ksurgeon.save(model, tmp_path / "model")
    deep = {"list": []}
    for _ in range(20):
        deep = {"list": [deep]}
    for inputs in (
        [{"tensor": [10**5, 10**5], "dtype": "float32", "max": 0}],
        [{"tensor": [2, 12, 4, 4], "dtype": "load", "max": 0}],
        [{"tensor": [-1, 12], "dtype": "float32", "max": 0}],
        [{"tensor": 5}],
        [deep],
        [],
    ):
        edit(folder, lambda record, i=inputs: record.update(inputs={"args": i, "kwargs": {}}))
        with pytest.raises(KsurgeonError):
            ksurgeon.load(folder, nn.Sequential(nn.ChannelShuffle(3), nn.Conv2d(12, 3, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.long(), "int64 instead of float32"),
        (lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn instead"),
        (lambda t: t > 0, "bool instead"),
        (lambda t: t.to(torch.complex64), "complex64 instead"),
        (lambda t: t * float("nan"), "NaN or Inf"),
        (lambda t: t / 0, "NaN or Inf"),
    ],
)
def test_tensors_are_finite_numbers_of_the_models_kind(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    save_file({name: change(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors")
    refused(folder, message)


def test_what_would_not_be_loaded_is_not_saved(folder):
    model = ksurgeon.load(folder, zoo.mlp())
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.up.bias[0] = float("nan")
    with pytest.raises(SurgeryError, match=r"up\.bias has NaN"):
        ksurgeon.save(model, folder)
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["ksurgeon.json", "model.safetensors"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_not_waited_for(folder, name, make):
    (folder / name).unlink()
    make(folder / name)
    refused(folder)


@pytest.mark.parametrize(
    "shard", [5, None, "/etc/passwd", "../model/other.safetensors", "..", "a\0.safetensors"]
)
def test_an_index_names_shards_beside_it(folder, shard):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    refused(folder, "damaged")


@pytest.mark.parametrize(
    "names", [["thesis.txt"], ["thesis/a.txt"], [""], ["../model/thesis.txt"], ["1_a/../thesis"]]
)
def test_a_record_gives_no_leave_to_delete(folder, names):
    (folder / "thesis.txt").write_text("mine")
    (folder / "thesis").mkdir()
    (folder / "thesis" / "a.txt").write_text("mine")
    edit(folder, lambda record: record.update(files=names))
    with pytest.raises(FolderError, match="thesis"):
        ksurgeon.save(ksurgeon.load(folder, zoo.mlp()), folder)
    assert (folder / "thesis.txt").read_text() == (folder / "thesis" / "a.txt").read_text() == "mine"


def test_no_more_than_its_own_files_go_with_a_folder_of_companions(folder):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    edit(folder, lambda record: record.update(files=["1_Pooling/config.json"]))
    model = ksurgeon.load(folder, zoo.mlp())
    (folder / "1_Pooling" / "thesis.txt").write_text("mine")
    with pytest.raises(FolderError, match=r"thesis\.txt"):
        ksurgeon.save(model, folder)
    (folder / "1_Pooling" / "thesis.txt").unlink()
    ksurgeon.save(model, folder)
    assert not (folder / "1_Pooling").exists()
