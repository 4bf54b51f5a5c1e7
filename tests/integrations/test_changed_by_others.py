"""Converted models of transformers that get a new head or a new vocabulary, and are saved then."""

import json

import pytest
import torch
import transformers
from torch import nn
from transformers import BertForSequenceClassification

import ksurgeon
from ksurgeon import Rule
from ksurgeon.site_kinds import kind_of
from ksurgeon.surgery.record import record_of
from tests.integrations import tiny
from tests.near import near


@pytest.fixture(autouse=True)
def _quiet():
    transformers.utils.logging.disable_progress_bar()


def new_head(model):
    model.classifier = nn.Linear(32, 7)
    model.config.num_labels = model.num_labels = 7


def new_words(model):
    model.resize_token_embeddings(20)


def dense_layer(model):
    """What a K-layer computes, in a layer of torch.nn: the user's own way back for one layer."""
    inner = model.bert.encoder.layer[0].intermediate
    made = nn.Linear(32, 64)
    made.load_state_dict({"weight": inner.dense.weight, "bias": inner.dense.bias})
    inner.dense = made


CHANGES = [(new_head, 0), (new_words, 0), (dense_layer, 1)]


def save_pretrained(model, folder):
    model.save_pretrained(folder)


@pytest.mark.parametrize("save", [ksurgeon.save, save_pretrained])
@pytest.mark.parametrize("change, gone", CHANGES)
@torch.no_grad()
def test_what_is_saved_is_the_model_as_it_is(tmp_path, change, gone, save):
    model, inputs = tiny.build("text-classification")
    ksurgeon.convert(model, tiny.RULE, inputs)
    before = len(record_of(model).operations)
    change(model)
    save(model, tmp_path / "model")
    expected = model(**inputs).logits
    for loaded in (
        ksurgeon.load(tmp_path / "model"),
        BertForSequenceClassification.from_pretrained(tmp_path / "model"),
    ):
        assert near(loaded(**inputs).logits, expected)
        stored = model.state_dict()
        assert all(torch.equal(tensor, stored[name]) for name, tensor in loaded.state_dict().items())
        operations = record_of(loaded).operations
        assert len(operations) == before - gone
        assert {o.path for o in operations} == {n for n, m in loaded.named_modules() if kind_of(m)}
    told = json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]["record"]
    assert len(told["operations"]) == before - gone
    ksurgeon.revert(loaded)
    torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    ksurgeon.save(loaded, tmp_path / "dense")
    assert near(ksurgeon.load(tmp_path / "dense")(**inputs).logits, loaded(**inputs).logits)


@pytest.mark.parametrize("change, gone", CHANGES)
def test_a_changed_model_goes_back(change, gone):
    model, inputs = tiny.build("text-classification")
    ksurgeon.convert(model, tiny.RULE, inputs)
    change(model)
    with torch.no_grad():
        expected = model(**inputs).logits
        torch.testing.assert_close(ksurgeon.revert(model)(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    assert not any(kind_of(module) for module in model.modules())
    assert record_of(model).operations == []


def test_a_model_without_any_k_layer_left_is_a_dense_one(tmp_path):
    model, inputs = tiny.build("text-classification")
    part = {"find": "linear", "targets": ["re:.*layer.0.intermediate.dense"], **tiny.QUICK}
    ksurgeon.convert(model, Rule(name="one", replace=[part]), inputs)
    dense_layer(model)
    model.save_pretrained(tmp_path / "model")
    assert "ksurgeon" not in (tmp_path / "model" / "config.json").read_text()
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "model")
    assert near(loaded(**inputs).logits, model(**inputs).logits)
