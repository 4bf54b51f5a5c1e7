"""Inserted maps in models of transformers, which saves and loads them itself."""

import pytest
import torch
from transformers import BertConfig, BertModel

import ksurgeon
from ksurgeon.kmatrix.structures import Dense, Kaleidoscope
from ksurgeon.rules import Insertion, Replacement, Rule

RULE = Rule(
    name="inserted",
    replace=(Replacement(find="linear", targets=(r"re:.*attention.*",), structure=Dense(), start="exact"),),
    insert=(
        Insertion(before=(r"re:.*intermediate\.dense",), dim=-1, structure=Kaleidoscope()),
        Insertion(after=("embeddings",), dim=2, structure=Kaleidoscope()),
    ),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("on_load", [False, True])
def test_saved_and_loaded_by_transformers(on_load, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "vocab_size": 64}
    model, ids = BertModel(BertConfig(num_attention_heads=2, **sizes)).eval(), torch.arange(10, 26)[None]
    expected = model(ids)[0]
    if on_load:
        model.save_pretrained(tmp_path / "dense")
        config = ksurgeon.KsurgeonConfig(RULE)
        model = BertModel.from_pretrained(tmp_path / "dense", quantization_config=config)
    else:
        ksurgeon.convert(model, RULE, {"input_ids": ids})
    inserted = [p for name, p in model.named_parameters() if "kbefore0" in name or "kafter0" in name]
    assert len(inserted) == 12
    torch.testing.assert_close(model(ids)[0], expected)
    with torch.no_grad():
        for parameter in inserted:
            parameter.add_(0.1 * torch.randn_like(parameter))
    trained = model(ids)[0]
    assert (trained - expected).abs().max() > 0.1
    model.save_pretrained(tmp_path / "converted")
    torch.testing.assert_close(BertModel.from_pretrained(tmp_path / "converted")(ids)[0], trained)
