"""The rule "decoder" takes the linear layers of decoders, and nothing else."""

import pytest
import torch
import transformers
from torch import nn

import ksurgeon
from ksurgeon.errors import MatchError

SIZES = {"vocab_size": 40, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
BART = {
    "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 128,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 32,
}  # fmt: skip
ATTENTION = [
    f"{place}.{name}_proj" for place in ("self_attn", "encoder_attn") for name in ("q", "k", "v", "out")
]
T5 = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 1}
T5_ATTENTION = [f"{n}.{name}" for n in ("0.SelfAttention", "1.EncDecAttention") for name in "qkvo"]


@pytest.mark.parametrize(
    ("config", "cls", "block", "layers"),
    [
        ("MarianConfig", "MarianMTModel", "model.decoder.layers.0.", [*ATTENTION, "fc1", "fc2"]),
        ("BartConfig", "BartForConditionalGeneration", "model.decoder.layers.0.", [*ATTENTION, "fc1", "fc2"]),
        (
            "T5Config",
            "T5ForConditionalGeneration",
            "decoder.block.0.layer.",
            [*T5_ATTENTION, "2.DenseReluDense.wi", "2.DenseReluDense.wo"],
        ),
    ],
)
def test_models_of_transformers(config, cls, block, layers):
    """All of the decoder's; neither the encoder's, nor embeddings, nor the head."""
    options = T5 if config == "T5Config" else BART
    model = getattr(transformers, cls)(getattr(transformers, config)(**SIZES, **options))
    linear = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    conversion = ksurgeon.convert(model, "decoder")
    replaced = {decision.path for decision in conversion.plan.replacements}
    assert replaced == {block + layer for layer in layers}
    left = linear - replaced
    assert "lm_head" in left and any("encoder." in path for path in left)
    assert all(isinstance(model.get_submodule(path), nn.Linear) for path in left)
    tokens = model.eval().generate(input_ids=torch.tensor([[5, 6, 7, 1]]), max_new_tokens=4, min_new_tokens=4)
    assert tokens.shape == (1, 5)


def test_a_head_that_is_called_a_decoder_stays():
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    model = transformers.BertForMaskedLM(config)
    with pytest.raises(MatchError):
        ksurgeon.convert(model, "decoder")


def test_an_untied_head_within_a_decoder_stays():
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=40, **sizes)
    decoder = transformers.BertConfig(vocab_size=40, is_decoder=True, add_cross_attention=True, **sizes)
    both = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(config, decoder)
    both.decoder.tie_word_embeddings = both.tie_word_embeddings = False
    model = transformers.EncoderDecoderModel(both)
    tokens = torch.tensor([[5, 6, 7]])
    conversion = ksurgeon.convert(model, "decoder", {"input_ids": tokens, "decoder_input_ids": tokens})
    replaced = {decision.path for decision in conversion.plan.replacements}
    assert replaced and not any("cls" in path for path in replaced)
    assert all(path.startswith("decoder.") for path in replaced)


def test_what_stands_beside_embeddings_stays():
    config = transformers.OPTConfig(
        vocab_size=40, hidden_size=64, word_embed_proj_dim=32, num_hidden_layers=1, num_attention_heads=4,
        ffn_dim=128, max_position_embeddings=32, do_layer_norm_before=False,
    )  # fmt: skip
    conversion = ksurgeon.convert(transformers.OPTForCausalLM(config), "decoder")
    replaced = {decision.path for decision in conversion.plan.replacements}
    assert {path.rpartition(".")[2] for path in replaced} == {
        "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2",
    }  # fmt: skip
