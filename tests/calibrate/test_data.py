"""Data in every form, and what is refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ksurgeon.calibrate import open_data
from ksurgeon.errors import DataError
from tests import zoo


class Loader:
    def __iter__(self):
        yield from [[torch.randn(4, 64), torch.zeros(4)]] * 3


@pytest.mark.parametrize(
    ("data", "fit", "check"),
    [
        (torch.randn(40, 64), 2, 1),
        ((torch.randn(40, 64),), 2, 1),
        ([torch.randn(4, 64)] * 8, 6, 2),
        (Loader(), 2, 1),
        (lambda: (torch.randn(4, 64) for _ in range(4)), 3, 1),
        (torch.randn(8, 64), 3, 1),
        (torch.randn(1, 64), 1, 1),
    ],
    ids=["tensor", "tuple", "list", "labels", "generator", "one batch", "one example"],
)
def test_data_of_every_form(data, fit, check):
    batches = open_data(data, zoo.mlp())
    assert (len(batches.fit), len(batches.check)) == (fit, check)


def test_data_stop_at_the_number_of_examples():
    def endless():
        while True:
            yield torch.randn(8, 64)

    batches = open_data(endless, zoo.mlp(), examples=40)
    assert len(batches.fit) + len(batches.check) == 5


def test_the_fingerprint_tells_data_apart():
    x = torch.randn(8, 64)
    same, other = open_data(x, zoo.mlp()), open_data(x + 1, zoo.mlp())
    assert open_data(x.clone(), zoo.mlp()).fingerprint == same.fingerprint != other.fingerprint


def test_images(tmp_path):
    from PIL import Image

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1))
    for number in range(5):
        Image.new("RGB", (250, 240), (number, 0, 0)).save(tmp_path / f"{number}.png")
    batches = open_data(tmp_path, model)
    assert batches.fit[0][0].shape[1:] == (3, 224, 224)
    small = open_data(tmp_path, model, examples=3, example_inputs=torch.randn(1, 3, 32, 40))
    assert [batch[0].shape for batch in small.fit + small.check] == [(1, 3, 32, 40)] * 3


def test_images_that_cannot_be_read_are_named_and_left_out(tmp_path):
    from PIL import Image

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1))
    for number in range(4):
        Image.effect_noise((40, 40), 9).save(tmp_path / f"{number}.png")
        (tmp_path / f"._{number}.png").write_bytes(b"\0\5\x16\7 what macOS keeps beside a file")
    (tmp_path / "half.png").write_bytes((tmp_path / "0.png").read_bytes()[:900])
    with pytest.warns(UserWarning, match=r"(?s)5 of 9 examples of .* left out:.*half\.png: OSError") as told:
        batches = open_data(tmp_path, model, examples=512)
    assert "._3.png: UnidentifiedImageError" in str(told[0].message)
    assert sum(len(batch[0]) for batch in batches.fit + batches.check) == 4 and len(batches.broken) == 5
    for number in range(4):
        (tmp_path / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"no data in .* 5 could not be read, the first"):
        open_data(tmp_path, model)


def tokenizer_in(folder, **options):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[UNK]": 0, "[PAD]": 1, "one": 2, "two": 3, "three": 4}
    plain = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", pad_token="[PAD]", **options)
    fast.save_pretrained(folder)
    return str(folder)


SMALL = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 32}  # fmt: skip


def test_lines_of_text(tmp_path):
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(**SMALL))
    file = tmp_path / "lines.txt"
    file.write_text("one two\n\nthree\none two three one\ntwo\n")
    with pytest.raises(DataError, match="--tokenizer"):
        open_data(file, model)
    batches = open_data(file, model, tokenizer=tokenizer_in(tmp_path / "tokenizer"), batch_size=2)
    shapes = [tuple(batch["input_ids"].shape) for batch in batches.fit + batches.check]
    assert sorted(shapes) == [(2, 1), (2, 4)]


def test_texts_are_cut_at_what_tokenizer_and_model_allow(tmp_path):
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel, XLNetConfig, XLNetModel

    long = tokenizer_in(tmp_path / "long")
    short = tokenizer_in(tmp_path / "short", model_max_length=7)
    models = (
        (BertModel(BertConfig(**SMALL, max_position_embeddings=20)), long, 20),
        (BertModel(BertConfig(**SMALL, max_position_embeddings=20)), short, 7),
        (RobertaModel(RobertaConfig(**SMALL, max_position_embeddings=20)), long, 18),  # two are for padding
        (XLNetModel(XLNetConfig(vocab_size=8, d_model=16, n_layer=1, n_head=2, d_inner=32)), long, 24),
    )
    for model, tokenizer, expected in models:
        batches = open_data(["one " * 200], model, tokenizer=tokenizer, max_length=24)
        assert batches.fit[0]["input_ids"].shape == (1, expected), type(model)


def test_what_a_training_reads_a_calibration_reads(tmp_path, monkeypatch):
    """The same texts of every file, and no brace, key or label."""
    from transformers import BertConfig, BertModel

    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    records = [{"text": "one two", "label": "good"}, {"text": "three", "label": "bad"}] * 4
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "a.csv").write_text("label,text\n" + "".join(f"{r['label']},{r['text']}\n" for r in records))
    (tmp_path / "a.txt").write_text("\n".join(r["text"] for r in records))
    datasets.Dataset.from_list(records).to_parquet("a.parquet")
    datasets.DatasetDict(train=datasets.Dataset.from_list(records)).save_to_disk("saved")
    (tmp_path / "mine.py").write_text(f"def records():\n    return {records}\n")
    model, tokenizer = BertModel(BertConfig(**SMALL)), tokenizer_in(tmp_path / "tokenizer")
    expected = open_data([r["text"] for r in records], model, tokenizer=tokenizer).fingerprint
    python = [
        [(r["text"], r["label"] == "good") for r in records],
        tuple(r["text"] for r in records),
        lambda: (r["text"] for r in records),
        datasets.load_from_disk("saved"),
    ]
    for data in ("a.jsonl", "a.csv", "a.txt", "a.parquet", "saved", "mine.py:records", *python):
        batches = open_data(data, model, tokenizer=tokenizer, batch_size=8)
        assert batches.fingerprint == expected and set(batches.fit[0]) <= {
            "input_ids",
            "attention_mask",
            "token_type_ids",
        }


def test_sounds_of_a_manifest(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    from transformers import Wav2Vec2FeatureExtractor

    model = nn.Linear(1600, 4)
    model.forward = lambda input_values, **_: nn.Linear.forward(model, input_values)
    model.config = SimpleNamespace(name_or_path=str(tmp_path))
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", torch.randn(1600).numpy(), 16000)
    (tmp_path / "all.csv").write_text("path,text\na.wav,hello\nb.wav,there\n")
    assert open_data(tmp_path / "all.csv", model).fit[0]["input_values"].shape == (1, 1600)


def test_examples_are_drawn_from_all():
    data = [torch.full((64,), float(number)) for number in range(1000)]
    found = [open_data(data, zoo.mlp(), examples=100) for _ in range(2)]
    drawn = torch.cat([batch[0][:, 0] for batch in found[0].fit + found[0].check])
    assert found[0].fingerprint == found[1].fingerprint and len(drawn.unique()) == 100
    assert all(10 < int(((drawn >= low) & (drawn < low + 250)).sum()) < 45 for low in range(0, 1000, 250))


@pytest.mark.parametrize("data", [
    [torch.randn(3, 8, 8)] * 20,
    [(torch.randn(3, 8, 8), 1)] * 20,
    [torch.randn(5, 3, 8, 8)] * 4,
    [(torch.randn(5, 3, 8, 8), torch.zeros(5))] * 4,
], ids=["examples", "labelled examples", "batches", "labelled batches"])  # fmt: skip
@pytest.mark.parametrize("example_inputs", [None, torch.randn(1, 3, 8, 8)])
def test_tensors_are_batches_or_examples(data, example_inputs):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    batches = open_data(data, model, example_inputs=example_inputs)
    taken = [(b[0] if isinstance(b, (tuple, list)) else b).shape for b in batches.fit + batches.check]
    assert sum(shape[0] for shape in taken) == 20 and {shape[1:] for shape in taken} == {(3, 8, 8)}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (torch.randn(4, 63), "do not match the model"),
        ([], "no data"),
        ("nowhere.txt", "no file or folder"),
        ("nowhere:function", "nowhere"),
        (3, "int"),
    ],
)
def test_data_that_do_not_serve(data, expected):
    with pytest.raises(Exception, match=expected) as caught:
        open_data(data, zoo.mlp())
    assert type(caught.value).__module__ == "ksurgeon.errors"
