"""Folders are written whole or not at all, and damage is told."""

import errno
import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import FolderError, RecordError, Rule
from ksurgeon.surgery import folders, storage
from ksurgeon.surgery.record import Training, record_of
from tests import zoo
from tests.near import near

X = zoo.example("shufflenet_v1_g4")


@pytest.fixture(scope="module")
def model():
    return ksurgeon.replace_modules(zoo.shufflenet_v1_g4(), "shuffle", X, source="tests.zoo:shufflenet_v1_g4")


@pytest.fixture
def folder(model, tmp_path):
    return ksurgeon.save(model, tmp_path / "model")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written(folder):
    assert set(contents(folder)) == {"ksurgeon.json", "model.safetensors"}
    record = json.loads((folder / "ksurgeon.json").read_text())
    assert record["schema"] == 1 and record["source"]["name"] == "tests.zoo:shufflenet_v1_g4"
    assert len(record["operations"]) == 4


def test_an_earlier_save_is_replaced(model, folder):
    before = contents(folder)
    ksurgeon.save(model, folder)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_folder_with_something_else_is_left_alone(model, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FolderError, match=r"thesis\.tex"):
        ksurgeon.save(model, tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


def test_a_file_is_left_alone(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FolderError, match="is a file"):
        ksurgeon.save(model, tmp_path / "file")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", [(storage, "save_file"), (folders, "_exchange")])
def test_a_save_that_fails_leaves_the_old_folder(model, folder, monkeypatch, error, where):
    before = contents(folder)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(*where, fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else FolderError):
        ksurgeon.save(model, folder)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_disk_that_is_really_full(folder, tmp_path):
    script = (
        "import resource, sys, torch, ksurgeon\n"
        "model = ksurgeon.load(sys.argv[1], trust_remote_code=True)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try:\n    ksurgeon.save(model, sys.argv[2])\n"
        "except ksurgeon.FolderError as error:\n    print(error)\n"
    )
    target = tmp_path / "full"
    done = subprocess.run(
        [sys.executable, "-c", script, folder, target], capture_output=True, text=True, check=True
    )
    assert "no space is left" in done.stdout
    assert not target.exists() and [path.name for path in tmp_path.iterdir()] == ["model"]


def damage_json(folder):
    (folder / "ksurgeon.json").write_text('{"schema": 1, "operations": [')


def damage_field(folder):
    record = json.loads((folder / "ksurgeon.json").read_text())
    record["operations"][0]["structure"]["width"] = 0
    (folder / "ksurgeon.json").write_text(json.dumps(record))


def newer(folder):
    record = json.loads((folder / "ksurgeon.json").read_text())
    (folder / "ksurgeon.json").write_text(json.dumps(record | {"schema": 7, "ksurgeon": "9.9"}))


def version_without_end(folder):
    """With which a record that fits no schema is to be compared."""
    record = json.loads((folder / "ksurgeon.json").read_text())
    (folder / "ksurgeon.json").write_text(json.dumps(record | {"mystery": 1, "ksurgeon": "9" * 5000}))


def newer_with_the_same_schema(folder):
    record = json.loads((folder / "ksurgeon.json").read_text())
    record["operations"][0]["mystery"] = 1
    (folder / "ksurgeon.json").write_text(json.dumps(record | {"ksurgeon": "9.9.1"}))


def strange_field(folder):
    record = json.loads((folder / "ksurgeon.json").read_text())
    record["operations"][0]["mystery"] = 1
    (folder / "ksurgeon.json").write_text(json.dumps(record))


def damage_tensors(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def damage_header(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(b"\xff" * 8 + data[8:])


def lose_tensors(folder):
    (folder / "model.safetensors").unlink()


def lose_record(folder):
    (folder / "ksurgeon.json").unlink()


def other_architecture(folder):
    text = (folder / "ksurgeon.json").read_text()
    (folder / "ksurgeon.json").write_text(
        text.replace("tests.zoo:shufflenet_v1_g4", "tests.zoo:shufflenet_v1_g8")
    )


def other_site(folder):
    text = (folder / "ksurgeon.json").read_text()
    (folder / "ksurgeon.json").write_text(text.replace('"units.1:', '"units.7:'))


def other_tensors(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["extra"] = tensors.pop("fc.bias")
    save_file(tensors, folder / "model.safetensors")


DAMAGE = [
    (damage_json, "not valid JSON"),
    (damage_field, "operations.0.structure"),
    (newer, "newer ksurgeon"),
    (version_without_end, "is damaged at"),
    (newer_with_the_same_schema, r"newer ksurgeon \(9\.9\.1\).*operations\.0\.mystery.*install"),
    (strange_field, r"damaged at operations\.0\.mystery"),
    (damage_tensors, "damaged"),
    (damage_header, "damaged"),
    (lose_tensors, "missing"),
    (lose_record, r"no ksurgeon\.json"),
    (other_architecture, "another architecture"),
    (other_site, "does not have"),
    (other_tensors, r"fc\.bias is missing"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=lambda v: getattr(v, "__name__", ""))
def test_damage_is_told(folder, damage, message):
    damage(folder)
    with pytest.raises(RecordError, match=message):
        ksurgeon.load(folder, trust_remote_code=True)


def test_a_model_given_to_load_is_checked_before_it_is_changed(folder):
    other = zoo.mlp()
    before = str(other)
    with pytest.raises(RecordError, match="another architecture"):
        ksurgeon.load(folder, model=other)
    assert str(other) == before


TOLD_LATE = [
    entry for entry in DAMAGE if entry[0] not in (damage_json, newer, lose_record, other_architecture)
]


@pytest.mark.parametrize(("damage", "message"), TOLD_LATE, ids=lambda v: getattr(v, "__name__", ""))
def test_damage_leaves_a_given_model_as_it_was(folder, damage, message):
    damage(folder)
    given = zoo.shufflenet_v1_g4()
    before, state = str(given), {name: tensor.clone() for name, tensor in given.state_dict().items()}
    with pytest.raises(RecordError, match=message):
        ksurgeon.load(folder, model=given)
    assert str(given) == before and given.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in given.state_dict().items())


def test_a_record_that_fails_halfway_leaves_a_given_model_as_it_was(tmp_path):
    model = zoo.mlp().eval()
    for name in ("up", "down"):
        part = {"find": "linear", "targets": [name], "with": {"structure": "kaleidoscope"}}
        ksurgeon.convert(model, Rule(name=name, replace=[part]), zoo.example("mlp"))
    file = ksurgeon.save(model, tmp_path / "model") / "ksurgeon.json"
    file.write_text(file.read_text().replace('"path": "down"', '"path": "sideways"'))
    given = zoo.mlp()
    before = str(given)
    with pytest.raises(RecordError, match="'sideways'"):
        ksurgeon.load(tmp_path / "model", model=given)
    assert str(given) == before


def test_a_model_of_unknown_source_asks_for_the_architecture(tmp_path):
    model = ksurgeon.replace_modules(zoo.mlp().eval(), "linear", zoo.example("mlp"))
    ksurgeon.save(model, tmp_path / "model")
    with pytest.raises(RecordError, match="model="):
        ksurgeon.load(tmp_path / "model", trust_remote_code=True)
    x = zoo.example("mlp")
    assert near(ksurgeon.load(tmp_path / "model", model=zoo.mlp())(x), model(x))
    ksurgeon.save(model, tmp_path / "model", source="tests.zoo:mlp")
    assert near(ksurgeon.load(tmp_path / "model", trust_remote_code=True)(x), model(x))


def test_a_metric_that_is_no_number_can_be_read_again(tmp_path):
    model = ksurgeon.replace_modules(zoo.mlp().eval(), "low_rank", zoo.example("mlp"))
    numbers = {"undefined": float("nan"), "endless": float("inf")}
    training = Training(data="d", examples=1, steps=1, batch=1, seconds=1.0, after=numbers)
    record_of(model).trainings.append(training)
    read = ksurgeon.load(ksurgeon.save(model, tmp_path / "model"), model=zoo.mlp())
    after = record_of(read).trainings[0].after
    assert math.isnan(after["undefined"]) and math.isinf(after["endless"])


def test_dtypes_survive(tmp_path):
    model = ksurgeon.replace_modules(zoo.mlp().eval(), "linear", zoo.example("mlp"), source="tests.zoo:mlp")
    model.bfloat16()
    ksurgeon.save(model, tmp_path / "model")
    loaded = ksurgeon.load(tmp_path / "model", trust_remote_code=True)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    x = zoo.example("mlp", torch.bfloat16)
    assert near(loaded(x), model(x))


def test_an_interrupt_right_after_the_old_folder_was_moved_away(model, folder, monkeypatch):
    before, rename, calls = contents(folder), type(folder).rename, []
    monkeypatch.setattr(folders, "_swap", lambda *_: False)

    def interrupted(path, target):
        rename(path, target)
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(type(folder), "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ksurgeon.save(model, folder)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_the_current_folder_is_not_replaced(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FolderError, match="current folder"):
        ksurgeon.save(model, ".")
    assert tmp_path.is_dir()


class Versioned(nn.Sequential):
    """Reads the version of its state, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        assert local_metadata["version"] == 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


def test_a_state_with_a_version_loads(tmp_path):
    x = torch.randn(2, 12, 4, 4)
    model = ksurgeon.replace_modules(Versioned(nn.ChannelShuffle(3), nn.Conv2d(12, 3, 1)), "shuffle", x)
    ksurgeon.save(model, tmp_path / "model")
    loaded = ksurgeon.load(tmp_path / "model", Versioned(nn.ChannelShuffle(3), nn.Conv2d(12, 3, 1)))
    assert near(loaded(x), model(x))


def test_buffers_that_are_not_saved_keep_their_dtype(tmp_path):
    class Scaled(zoo.Mlp):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.tensor(1 / 3), persistent=False)

        def forward(self, x):
            return super().forward(x) * self.scale

    model = ksurgeon.replace_modules(Scaled().eval(), "linear", zoo.example("mlp")).bfloat16()
    ksurgeon.save(model, tmp_path / "model")
    x = zoo.example("mlp", torch.bfloat16)
    assert near(ksurgeon.load(tmp_path / "model", model=Scaled())(x), model(x))
