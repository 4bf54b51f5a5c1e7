"""Where examples come from, what is done with broken ones, and in which order they come."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ksurgeon.calibrate.preprocess import Preprocess
from ksurgeon.errors import DataError
from ksurgeon.train.data import open_data
from ksurgeon.train.order import batches_by_length, epoch_batches
from ksurgeon.train.settings import make_settings
from ksurgeon.train.sources import open_source

RECORDS = [{"text": "one", "label": 0}, {"text": "two", "label": 1}]


def _text(folder):
    (folder / "a.txt").write_text("one\n\n  two \n")
    return folder / "a.txt"


def _jsonl(folder):
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, RECORDS)))
    return folder / "a.jsonl"


def _csv(folder):
    (folder / "a.csv").write_text("text,label\none,0\ntwo,1\n")
    return folder / "a.csv"


def _parquet(folder):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(RECORDS).to_parquet(str(folder / "a.parquet"))
    return folder / "a.parquet"


def _saved(folder):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict(train=datasets.Dataset.from_list(RECORDS)).save_to_disk(str(folder / "set"))
    return folder / "set"


def _function(folder):
    (folder / "mine.py").write_text("def texts():\n    yield from ['one', 'two']\n")
    return f"{folder}/mine.py:texts"


@pytest.mark.parametrize(
    ("make", "labelled"),
    [
        (_text, False),
        (_jsonl, True),
        (_csv, True),
        (_parquet, True),
        (_saved, True),
        (_function, False),
        (lambda _: RECORDS, True),
        (lambda _: [("one", 0), ("two", 1)], True),
        (lambda _: iter(["one", "two"]), False),
    ],
)
def test_texts(make, labelled, tmp_path):
    source = open_source(make(tmp_path))
    assert (source.modality, len(source)) == ("text", 2)
    assert [source.read(i).value for i in range(2)] == ["one", "two"]
    assert [source.read(i).label for i in range(2)] == ([0, 1] if labelled else [None, None])
    assert len(open_source(make(tmp_path), limit=1)) == 1


def test_pictures_in_folders_of_classes(tmp_path):
    for name, colour in (("cat", "red"), ("dog", "blue")):
        (tmp_path / name).mkdir()
        Image.new("L" if name == "cat" else "RGB", (8, 6), colour).save(tmp_path / name / "1.png")
    source = open_source(tmp_path)
    assert (source.modality, source.classes) == ("image", ["cat", "dog"])
    assert source.read(1).label == 1 and source.read(0).value.mode == "RGB"


def test_folders_that_are_splits_are_no_classes(tmp_path):
    for name in ("train/cat", "Test/cat"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 6)).save(tmp_path / name / "1.png")
    with pytest.raises(DataError, match=r"are splits, not classes: Test, train; name one, such as .*train"):
        open_source(tmp_path)
    assert open_source(tmp_path / "train").classes == ["cat"]


def test_sounds_of_a_manifest(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", torch.zeros(1600).numpy(), 16000)
    (tmp_path / "all.tsv").write_text("path\ttext\na.wav\thello\n")
    source = open_source(tmp_path / "all.tsv")
    assert (source.modality, source.read(0).target) == ("audio", "hello")
    assert source.read(0).value == str(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nothing.txt", "no file or folder nothing.txt"),
        ([], "no example"),
        (iter([]), "no example"),
        (3, "gives no examples"),
        ("tests.nothing:data", "tests.nothing"),
        ("torchvision:CIFAR10", "CLASS@FOLDER"),
        ([{"colour": "red"}], None),
    ],
)
def test_what_is_no_data(data, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if message is None:
        assert open_source(data).modality == "tensors"
        return
    with pytest.raises(DataError, match=message):
        open_source(data)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe\x00", "cannot be read"),
        ("a.txt", b"\n\n", "no example"),
        ("a.jsonl", b'{"colour": "red"}\n', "expected one of text"),
        ("a.jsonl", b"{", "could not be read"),
        ("a.parquet", b"no parquet", "cannot be read"),
        ("a.docx", b"x", "end in .txt"),
    ],
)
def test_files_that_are_no_data(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / name)


def _opened(data, **settings):
    model = nn.Linear(4, 4)
    return open_data(data, model, make_settings(**settings))


def _broken(count, bad):
    def read(value):
        if int(value[0]) in bad:
            raise OSError(f"bad block in {int(value[0])}")
        return value

    data = [torch.full((4,), float(i)) for i in range(count)]
    opened = _opened(data, batch=4, held_out=0, broken=3)
    prepare = opened.preprocess.prepare

    def checked(example):
        read(example.value)
        return prepare(example)

    opened.preprocess = Preprocess(checked, opened.preprocess.collate)
    return opened


def test_broken_examples_are_named_and_another_takes_their_place():
    data = _broken(12, {3, 7})
    batches = data.training_batches(0)
    seen = [batch for _ in range(6) for batch in next(batches)]
    assert all(len(batch["index"]) == 4 for batch in seen)
    assert {3, 7}.isdisjoint({int(i) for batch in seen for i in batch["index"]})
    assert sorted(data.broken)[0].endswith("example 3: OSError: bad block in 3") and len(data.broken) == 2


def test_broken_examples_stay_on_their_side_of_the_split():
    data = _broken(12, {0, 3, 11})
    data.train, data.held_out = [0, 1, 2, 8, 9, 10, 11], [3, 4, 5, 6, 7]
    batches = data.training_batches(0)
    seen = {int(i) for _ in range(6) for batch in next(batches) for i in batch["index"]}
    assert seen == {1, 2, 8, 9, 10}
    evaluated = [batch["index"].tolist() for batch in data.batches(data.held_out, 1)]
    assert evaluated == [[4], [5], [6], [7]]
    with pytest.raises(DataError, match=r"no example .* bad block in 3"):
        list(data.batches([3]))


def _crop(value):
    return torch.stack([torch.rand(()), torch.tensor(random.random()), torch.tensor(np.random.rand())])


def test_worker_processes_draw_other_random_numbers_for_other_seeds_and_steps():
    def drawn(seed, step, rank=0, workers=1):
        settings = make_settings(batch=2, held_out=0, workers=workers, seed=seed)
        data = open_data([torch.ones(4)] * 8, nn.Linear(3, 3), settings, preprocessor=_crop)
        return next(data.training_batches(step, rank, 2))[0]["inputs"][0].flatten().tolist()

    found = [drawn(0, 0), drawn(1, 0), drawn(0, 1), drawn(0, 0, rank=1)]
    assert len({number for numbers in found for number in numbers}) == 4 * 3
    assert drawn(1, 0) == found[1]


def test_too_many_broken_examples_end_it():
    batches = _broken(12, {1, 3, 5, 7, 9}).training_batches(0)
    with pytest.raises(DataError, match=r"4 of 12 examples .* more than the 3 allowed"):
        for _ in range(6):
            next(batches)


class _Short:
    """Says that it holds more than it does."""

    def __len__(self):
        return 12

    def __getitem__(self, number):
        if number >= 8:
            raise IndexError(f"no block {number}")
        return torch.full((4,), float(number))


def test_data_that_ends_early_is_named():
    batches = _opened(_Short(), batch=4, held_out=0).training_batches(0)
    with pytest.raises(DataError, match=r"(?s)1 of 12 examples .* IndexError: no block \d+"):
        for _ in range(3):
            next(batches)


def test_data_that_breaks_off_is_named(tmp_path):
    def texts():
        yield "one"
        raise EOFError("the connection was lost")

    with pytest.raises(DataError, match="the generator given broke off: EOFError: the connection was lost"):
        open_source(texts())
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:1500])
    data = _opened(tmp_path, batch=1, held_out=0, broken=1)
    assert len(list(data.batches([0, 1]))) == 2
    assert len(data.broken) == 1 and "half.png: OSError: " in data.broken[0]


def test_broken_lines_count(tmp_path):
    lines = [json.dumps({"text": str(i)}) for i in range(9)] + ["{ half a li"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = open_source(tmp_path / "a.jsonl")
    assert len(source) == 9 and "line 10" in source.broken[0]


def test_examples_of_several_shapes_make_no_batch():
    data = _opened([torch.zeros(4), torch.zeros(5)] * 4, batch=4, held_out=0)
    with pytest.raises(DataError, match="make no batch"):
        next(data.training_batches(0))


def test_a_batch_is_no_larger_than_the_data():
    data = _opened([torch.zeros(4)] * 5, batch=32, held_out=0.2)
    assert (data.batch, len(data.train), len(data.held_out)) == (4, 4, 1)
    assert data.batches_per_epoch == 1


def test_processes_share_a_batch():
    data = _opened([torch.full((4,), float(i)) for i in range(32)], batch=8, held_out=0)
    whole = next(data.training_batches(3))[0]["index"].tolist()
    shares = [next(data.training_batches(3, rank, 2))[0]["index"].tolist() for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(whole)
    with pytest.raises(DataError, match="shared by 3"):
        next(data.training_batches(0, 0, 3))


def test_order_goes_on_from_any_step():
    data = _opened([torch.full((4,), float(i)) for i in range(20)], batch=4, held_out=0.2)
    begin = data.training_batches(0)
    through = [next(begin)[0]["index"].tolist() for _ in range(9)]
    later = data.training_batches(5)
    assert [next(later)[0]["index"].tolist() for _ in range(4)] == through[5:]
    assert not {i for batch in through for i in batch} & set(data.held_out)
    assert sorted(i for batch in through[:4] for i in batch) == data.train


def test_batches_hold_examples_of_about_the_same_length():
    lengths = torch.randint(1, 100, (640,), generator=torch.Generator().manual_seed(0))
    batches = epoch_batches(range(640), 8, 0, 0, lengths)
    spread = [int(lengths[batch].max() - lengths[batch].min()) for batch in batches]
    assert sum(spread) / len(spread) < 5 and len({i for batch in batches for i in batch}) == 640
    assert epoch_batches(range(640), 8, 0, 1, lengths) != batches
    assert [len(batch) for batch in batches_by_length(range(10), 4, None)] == [4, 4, 2]


def test_worker_processes_give_the_same_batches():
    examples = [torch.full((4,), float(i)) for i in range(16)]
    found = []
    for workers in (0, 1):
        batches = _opened(examples, batch=4, held_out=0, workers=workers).training_batches(0)
        found.append(torch.cat([next(batches)[0]["inputs"][0] for _ in range(4)]))
        del batches
    assert torch.equal(*found)


@pytest.mark.parametrize("wanted", [False, True])
def test_pictures_come_channels_last_where_that_is_wanted(wanted):
    def prepare(value):
        return value

    data = [torch.full((3, 4, 5), float(i)) for i in range(4)]
    settings = make_settings(batch=2, held_out=0, channels_last=wanted)
    opened = open_data(data, nn.Conv2d(3, 3, 1), settings, preprocessor=prepare)
    (batch,) = next(opened.training_batches(0))
    (pictures,) = batch["inputs"]
    assert pictures.shape == (2, 3, 4, 5)
    assert pictures.is_contiguous(memory_format=torch.channels_last) is wanted
    assert sorted(pictures[:, 0, 0, 0].tolist()) == sorted(batch["index"].tolist())
    (batch,) = next(_opened([torch.ones(4)] * 4, held_out=0, channels_last=wanted).training_batches(0))
    assert batch["inputs"][0].is_contiguous()  # other shapes are left alone
