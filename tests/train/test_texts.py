"""Texts, pictures and sounds, prepared as the model wants them."""

import copy

import pytest
import torch
from PIL import Image
from torch import nn

import ksurgeon
from ksurgeon.errors import DataError
from ksurgeon.train.data import open_data
from ksurgeon.train.settings import make_settings
from tests.train import texts

FAST = {"batch": 8, "steps": 4, "device": "cpu", "evaluate": 1, "layerwise": 2, "lr": 1e-3}


@pytest.mark.parametrize(
    ("kind", "task", "terms"),
    [
        ("encoder", "auto", {"embedding", "tokens", "hidden"}),
        ("causal", "causal-lm", {"logits", "hidden", "task"}),
        ("masked", "masked-lm", {"logits", "hidden", "task"}),
        ("seq2seq", "seq2seq", {"logits", "hidden", "task"}),
        ("classifier", "auto", {"logits", "hidden"}),
    ],
)
def test_models_of_language(kind, task, terms, tmp_path, heard):
    student, teacher = texts.pair(kind, tmp_path / kind)
    ksurgeon.distill(student, teacher, texts.sentences(), task=task, listener=heard, **FAST)
    assert set(heard.steps[0].terms) == terms
    assert heard.evaluations[-1].student.keys() >= {"cosine" if kind == "encoder" else "agreement"}


def test_batches_of_texts(tmp_path):
    student, _ = texts.pair("encoder", tmp_path / "encoder")
    data = open_data(texts.sentences(), student, make_settings(batch=8, held_out=0, max_length=6))
    batch = next(data.training_batches(0))[0]
    assert batch["inputs"].keys() == {"input_ids", "attention_mask"}
    assert batch["inputs"]["input_ids"].shape[1] <= 6
    assert (batch["inputs"]["attention_mask"] == (batch["inputs"]["input_ids"] != 0)).all()


def test_masking_hides_words_and_only_they_have_labels(tmp_path):
    student, _ = texts.pair("masked", tmp_path / "masked")
    data = open_data(texts.sentences(200), student, make_settings(task="masked-lm", batch=100, held_out=0))
    batch = next(data.training_batches(0))[0]
    ids, labels = batch["inputs"]["input_ids"], batch["labels"]
    assert (ids[labels != -100] == 4).all() and not (ids[labels == -100] == 4).any()
    assert 0.08 < (labels != -100).sum() / (ids != 0).sum() < 0.25


def test_the_decoder_is_given_the_target_one_later(tmp_path):
    student, _ = texts.pair("seq2seq", tmp_path / "seq2seq")
    records = [{"text": "the cat sat", "target": "a big dog ran"}, {"text": "a dog", "target": "rain"}] * 8
    data = open_data(records, student, make_settings(task="seq2seq", batch=16, held_out=0))
    batch = next(data.training_batches(0))[0]
    given, labels = batch["inputs"]["decoder_input_ids"], batch["labels"]
    assert (given[:, 0] == 0).all()
    later, kept = given[:, 1:], labels[:, :-1] != -100
    assert torch.equal(later[kept], labels[:, :-1][kept])


def test_texts_need_a_tokenizer():
    with pytest.raises(DataError, match="tokenizer, processor"):
        open_data(["some text"], nn.Linear(4, 4), make_settings())
    data = open_data(
        ["the cat"] * 4, nn.Embedding(30, 4), make_settings(held_out=0), preprocessor=texts.tokenizer()
    )
    assert len(data.train) == 4


def test_pictures_are_prepared_by_the_model_and_broken_ones_skipped(tmp_path, heard):
    import timm

    torch.manual_seed(0)
    for number in range(12):
        colour = tuple(int(v) for v in torch.randint(0, 255, (3,)))
        Image.new("RGB", (40, 48), colour).save(tmp_path / f"{number:02}.png")
    (tmp_path / "05.png").write_bytes(b"no picture")
    teacher = timm.create_model("test_efficientnet", num_classes=5).eval()
    student = copy.deepcopy(teacher)
    ksurgeon.convert(student, "pointwise", torch.randn(1, 3, 32, 32))
    trained = ksurgeon.distill(
        student, teacher, tmp_path, listener=heard, broken=2, **{**FAST, "batch": 4, "held_out": 0.2}
    )
    assert "agreement" in heard.evaluations[0].student
    assert len(trained.broken) == 1 and "05.png" in trained.broken[0]


def test_sounds_are_resampled_and_padded(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    model = Wav2Vec2Model(
        Wav2Vec2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            conv_dim=(8, 8), conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2,
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        )
    )  # fmt: skip
    rows = ["path"]
    for number, (rate, seconds) in enumerate([(16000, 0.1), (8000, 0.2), (16000, 0.15), (16000, 0.1)]):
        wave = torch.randn(int(rate * seconds)).numpy()
        soundfile.write(tmp_path / f"{number}.wav", wave, rate)
        rows.append(f"{number}.wav")
    (tmp_path / "all.tsv").write_text("\n".join(rows))
    data = open_data(
        tmp_path / "all.tsv",
        model,
        make_settings(batch=4, held_out=0),
        preprocessor=Wav2Vec2FeatureExtractor(),
    )
    batch = next(data.training_batches(0))[0]
    assert batch["inputs"]["input_values"].shape == (4, 3200)
