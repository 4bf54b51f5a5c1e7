"""Files beside a model are copied from within its folder, and go by names that nothing else has."""

import json

import pytest

from ksurgeon.models.companions import copy_companions, is_companion


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path):
    write(tmp_path, {"secret": "s", "keys/config.json": "k"})
    source = write(tmp_path / "source", {"vocab.txt": "v", "modules.json": '[{"path": "1_Pooling"}]'})
    (source / "tokenizer.json").symlink_to(tmp_path / "secret")
    (source / "1_Pooling").symlink_to(tmp_path / "keys")
    (source / "merges.txt").symlink_to(source / "vocab.txt")
    (source / "tokenizer_config.json").symlink_to(source / "nowhere")
    target = tmp_path / "target"
    assert copy_companions(str(source), target) == ["merges.txt", "modules.json", "vocab.txt"]
    assert not any(path.is_symlink() for path in target.iterdir())


def test_a_snapshot_of_the_hub_is_made_of_links(tmp_path):
    repository = tmp_path / "models--a--b"
    write(repository, {"blobs/0": "{}"})
    snapshot = write(repository / "snapshots" / "1", {"vocab.txt": "v"})
    (snapshot / "tokenizer.json").symlink_to("../../blobs/0")
    assert copy_companions(str(snapshot), tmp_path / "target") == ["tokenizer.json", "vocab.txt"]


@pytest.mark.parametrize(
    "modules",
    [{"a": 1}, [["path"]], [None], "x"]
    + [[{"path": path}] for path in (5, "1_" + "x" * 300, "/etc", "a\0", ".", "..", "private", "1_a/../x")],
)
def test_odd_lists_of_modules_name_nothing(tmp_path, modules):
    source = write(
        tmp_path / "source", {"modules.json": json.dumps(modules), "private/key": "k", "weights": "w"}
    )
    assert copy_companions(str(source), tmp_path / "target") == ["modules.json"]


def test_nesting_is_no_list_of_modules(tmp_path):
    source = write(tmp_path / "source", {"modules.json": "[" * 3000 + "]" * 3000})
    assert copy_companions(str(source), tmp_path / "target") == ["modules.json"]


def test_names_of_companions():
    ours = ["tokenizer.json", "vocab.txt", "modules.json", "1_Pooling/config.json", "query_0_Router/x/y.json"]
    assert all(map(is_companion, ours))
    others = ["", ".", "..", "thesis.txt", "thesis/tokenizer.json", "/vocab.txt", "1_Pooling/../thesis.txt"]
    assert not any(map(is_companion, others))
