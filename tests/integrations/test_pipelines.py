"""Folders of converted models in the pipelines of transformers, and in sentence-transformers."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import ksurgeon
from ksurgeon.site_kinds import kind_of
from tests.integrations import tiny
from tests.near import near

PICTURE = Image.fromarray(np.arange(40 * 48 * 3, dtype=np.uint8).reshape(40, 48, 3))
GIVEN = {
    "feature-extraction": ("a matrix of factors .", {}),
    "text-classification": (["a matrix is fast .", "a"], {"batch_size": 2, "top_k": None}),
    "token-classification": ("a matrix of factors is fast .", {}),
    "fill-mask": ("a [MASK] is fast .", {"top_k": 3}),
    "text-generation": (
        ["a matrix", "a matrix of factors"],
        {"batch_size": 2, "max_new_tokens": 4, "do_sample": False},
    ),
    "image-classification": ([PICTURE, PICTURE.rotate(90)], {"batch_size": 2}),
    "object-detection": (PICTURE, {"threshold": 0.0}),
}


@pytest.fixture(autouse=True)
def _quiet():
    transformers.utils.logging.disable_progress_bar()


def convert(task, folder):
    """The converted model, and a folder of it with tokenizer or processor."""
    model, inputs = tiny.build(task)
    tiny.save_companions(task, folder / "dense")
    ksurgeon.convert(model, tiny.RULE, inputs)
    ksurgeon.save(model, folder / "converted", files_from=folder / "dense")
    return model, folder / "converted"


def companions(folder):
    if (folder / "tokenizer.json").exists():
        return {"tokenizer": transformers.AutoTokenizer.from_pretrained(folder)}
    return {"image_processor": transformers.AutoImageProcessor.from_pretrained(folder)}


@pytest.mark.parametrize("task", GIVEN)
def test_a_pipeline_of_a_folder_gives_what_the_model_gives(tmp_path, task):
    model, folder = convert(task, tmp_path)
    inputs, options = GIVEN[task]
    pipe = transformers.pipeline(task, model=str(folder), device="cpu")
    assert sum(kind_of(module) is not None for module in pipe.model.modules()) >= 8
    told = pipe(inputs, **options)
    for other in (model, ksurgeon.load(folder)):
        assert (
            transformers.pipeline(task, model=other, device="cpu", **companions(folder))(inputs, **options)
            == told
        )
    dense, _ = tiny.build(task)
    assert (
        transformers.pipeline(task, model=dense, device="cpu", **companions(folder))(inputs, **options)
        != told
    )


def test_a_pipeline_in_half_precision(tmp_path):
    _, folder = convert("text-classification", tmp_path)
    pipe = transformers.pipeline("text-classification", model=str(folder), dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in pipe.model.parameters()} == {torch.bfloat16}
    assert 0 < pipe("a matrix is fast .")[0]["score"] < 1


def test_a_folder_of_sentence_transformers(tmp_path):
    st = pytest.importorskip("sentence_transformers")
    model, folder = convert("feature-extraction", tmp_path)
    sentences = ["a matrix of factors .", "fast"]
    encoder = st.SentenceTransformer(str(folder), device="cpu")
    vectors = torch.from_numpy(encoder.encode(sentences))
    tokens = companions(folder)["tokenizer"](sentences, padding=True, return_tensors="pt")
    mask = tokens["attention_mask"][..., None]
    with torch.no_grad():
        expected = (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=1e-5)
    encoder.save(str(tmp_path / "saved"))
    again = st.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert near(torch.from_numpy(again.encode(sentences)), vectors)
    assert any(kind_of(module) is not None for module in again.modules())
