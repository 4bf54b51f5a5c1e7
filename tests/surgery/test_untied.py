"""Layers whose weight is tied to another module's: a rule says whether they get a matrix of their own."""

import pytest
import torch
import transformers
from torch import nn

import ksurgeon
from ksurgeon import KLinear, KsurgeonConfig, Rule

IDS = torch.tensor([[5, 6, 7, 9, 3], [4, 8, 2, 6, 3]])
HEAD = {"find": "linear", "where": {"head": True}, "with": {"structure": "low_rank", "share": 0.3}}
UNTIED = Rule(name="untied", replace=[{**HEAD, "untie": True}])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


def marian():
    torch.manual_seed(0)
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SIDE.items()}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "bos_token_id": None}
    config = transformers.MarianConfig(vocab_size=40, d_model=32, max_position_embeddings=32, **sizes, **ids)
    return transformers.MarianMTModel(config).eval()


SIDE = {"layers": 1, "ffn_dim": 32, "attention_heads": 2}


def gpt2():
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    config = transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2, n_positions=32, **ids)
    return transformers.GPT2LMHeadModel(config).eval()


MODELS = {
    "marian": (marian, {"input_ids": IDS, "decoder_input_ids": IDS[:, :3]}),
    "gpt2": (gpt2, {"input_ids": IDS}),
}


def test_it_is_replaced_only_if_the_rule_says_untie():
    model = Tied()
    with pytest.raises(ksurgeon.MatchError, match=r"tied to embed\.weight"):
        ksurgeon.convert(model, Rule(name="tied", replace=[HEAD]), IDS)
    assert model.head.weight is model.embed.weight


def test_the_other_keeps_the_weight(tmp_path):
    model = Tied()
    embedded = model.embed.weight.detach().clone()
    conversion = ksurgeon.convert(model, UNTIED, IDS)
    assert isinstance(model.head, KLinear) and torch.equal(model.embed.weight, embedded)
    with conversion.undone():
        assert model.head.weight is model.embed.weight
    model.head(torch.ones(1, 16)).sum().backward()
    assert model.embed.weight.grad is None
    ksurgeon.save(model, tmp_path / "saved")
    loaded = ksurgeon.load(tmp_path / "saved", model=Tied())
    torch.testing.assert_close(loaded(IDS), model(IDS))
    outputs = model(IDS)
    ksurgeon.revert(model)
    assert type(model.head) is nn.Linear and model.head.weight is not model.embed.weight
    torch.testing.assert_close(model(IDS), outputs)


def test_a_plan_that_names_it_replaces_it():
    plan = ksurgeon.convert(Tied(), UNTIED, IDS).plan
    model = Tied()
    ksurgeon.convert(model, plan=plan, example_inputs=IDS)
    assert isinstance(model.head, KLinear)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("save", ["ksurgeon", "save_pretrained"])
def test_transformers_does_not_tie_it_again(name, save, tmp_path):
    build, inputs = MODELS[name]
    model = build()
    dense = model(**inputs).logits
    conversion = ksurgeon.convert(model, UNTIED, inputs)
    with conversion.undone():
        model.tie_weights()
        torch.testing.assert_close(model(**inputs).logits, dense)
        assert model.lm_head.weight is model.get_input_embeddings().weight
    logits = model(**inputs).logits
    model.tie_weights()
    model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3)
    folder = tmp_path / "saved"
    ksurgeon.save(model, folder) if save == "ksurgeon" else model.save_pretrained(folder)
    for loaded in (ksurgeon.load(folder), type(model).from_pretrained(folder)):
        assert isinstance(loaded.lm_head, KLinear)
        loaded.tie_weights()
        torch.testing.assert_close(loaded.eval()(**inputs).logits, logits)
    ksurgeon.revert(model)
    model.tie_weights()
    torch.testing.assert_close(model(**inputs).logits, logits)


@pytest.mark.parametrize("name", MODELS)
def test_dense_weights_are_converted_as_they_are_loaded(name, tmp_path):
    build, inputs = MODELS[name]
    dense = build()
    dense.save_pretrained(tmp_path / "dense")
    loaded = type(dense).from_pretrained(tmp_path / "dense", quantization_config=KsurgeonConfig(UNTIED))
    ksurgeon.convert(dense, UNTIED, inputs)
    assert isinstance(loaded.lm_head, KLinear)
    torch.testing.assert_close(loaded.eval()(**inputs).logits, dense(**inputs).logits)
