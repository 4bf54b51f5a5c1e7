"""Tiny models with random weights of many architectures of transformers, and inputs for them.

``python -m tests.integrations.architectures FOLDER`` loads every converted model below a folder as anybody
would, and writes its outputs beside it.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.auto import modeling_auto

from ksurgeon.find.inputs import as_call, evaluating, tensors_of
from ksurgeon.models import example_inputs

SIZES = {
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embedding_size": 32, "projection_dim": 32,
    "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "n_layers": 2,
    "encoder_layers": 2, "decoder_layers": 2, "num_decoder_layers": 2, "num_attention_heads": 4,
    "num_heads": 4, "n_head": 4, "n_heads": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "num_key_value_heads": 2, "d_kv": 8, "intermediate_size": 64, "d_ff": 64, "ffn_dim": 64,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "hidden_dim": 64, "moe_intermediate_size": 32,
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 96, "image_size": 32,
    "patch_size": 8, "max_position_embeddings": 64, "n_positions": 64, "max_source_positions": 32,
    "max_target_positions": 32, "num_mel_bins": 16, "num_conv_pos_embeddings": 16,
}  # fmt: skip
FURTHER = {
    "swin": {"embed_dim": 32, "num_heads": [2, 4], "depths": [1, 1], "image_size": 64, "patch_size": 4},
    "convnext": {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1]},
    "wav2vec2": {"conv_dim": [32] * 7},
    "yolos": {"image_size": [32, 32], "num_detection_tokens": 8},
    "segformer": {"hidden_sizes": [16, 32, 64, 64], "num_attention_heads": [1, 2, 4, 4]},
    "detr": {
        "num_queries": 6,
        "backbone_config": {
            "model_type": "resnet", "layer_type": "basic", "embedding_size": 16,
            "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1], "out_features": ["stage4"],
        },
    },
}  # fmt: skip
FURTHER |= {"swinv2": FURTHER["swin"], "hubert": FURTHER["wav2vec2"]}

CAUSAL = (
    "gpt2", "llama", "qwen2", "qwen3", "gemma", "gemma2", "mistral", "mixtral", "qwen2_moe", "opt", "bloom",
    "gpt_neox", "phi", "phi3", "olmo", "granite", "cohere", "stablelm", "starcoder2", "mamba",
)  # fmt: skip
SEQ2SEQ = ["t5", "mt5", "bart", "pegasus", "mbart", "blenderbot", "m2m_100", "marian", "whisper"]
OTHERS = (
    "wav2vec2", "hubert", "bert", "distilbert", "deberta", "deberta-v2", "roberta", "albert", "electra",
    "mpnet", "modernbert", "fnet", "vit", "deit", "beit", "swin", "swinv2", "convnext", "dinov2", "clip",
    "siglip", "segformer", "detr", "yolos", "squeezebert",
)  # fmt: skip
NAMES = (*CAUSAL, *SEQ2SEQ, *OTHERS)
NEW_TOKENS = 5


def tiny_config(name):
    cls = transformers.CONFIG_MAPPING[name]
    given = sizes_of(cls()) | FURTHER.get(name, {})
    kinds = getattr(cls(**given), "layer_types", None)
    if isinstance(kinds, list) and name != "mamba":
        given["layer_types"] = kinds[:2]
    config = cls(**given)
    for token in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        if (getattr(config, token, None) or 0) >= SIZES["vocab_size"]:
            setattr(config, token, 0)
    return config


def sizes_of(config):
    """Small sizes for those that a configuration has, and for the configurations in it."""
    sizes = {}
    for key, value in vars(config).items():
        if hasattr(value, "model_type"):
            sizes[key] = {"model_type": value.model_type, **sizes_of(value)}
        elif type(value) is int and value > SIZES.get(key, value):
            sizes[key] = SIZES[key]
    return sizes


def build(name):
    config = tiny_config(name)
    mappings = {
        "causal": (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,),
        "seq2seq": (
            modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
            modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
        ),
    }
    kind = "causal" if name in CAUSAL else "seq2seq" if name in SEQ2SEQ else ""
    for mapping in (*mappings.get(kind, ()), modeling_auto.MODEL_MAPPING):
        if type(config) in mapping:
            torch.manual_seed(0)
            model = mapping[type(config)](config).eval()
            break
    if model.can_generate():
        given = model.generation_config
        given.eos_token_id = None
        given.pad_token_id, given.decoder_start_token_id = 0, 0
        given.max_length = None
    return model


def outputs(model, inputs):
    """What the model gives for inputs, and what it writes after them, token for token."""
    args, kwargs = as_call(inputs)
    with evaluating(model):
        told = {
            f"output.{n}": t
            for n, t in enumerate(tensors_of(model(*args, **kwargs)))
            if t.is_floating_point()
        }
    if model.can_generate():
        given = {name: value for name, value in kwargs.items() if not name.startswith("decoder_")}
        told["tokens"] = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
        if "attention_mask" in given:  # left padding, a batch, beams
            ids, mask = given["input_ids"], given["attention_mask"]
            ids, mask = torch.cat([ids, ids.roll(1)]), torch.cat([mask, mask])
            mask[1, :3] = 0
            told["beams"] = model.generate(
                ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, num_beams=2, do_sample=False
            )
    return {name: tensor.contiguous().clone() for name, tensor in told.items()}


def main(folder):
    import ksurgeon  # noqa: F401

    for model_folder in sorted(Path(folder).iterdir()):
        config = transformers.AutoConfig.from_pretrained(model_folder)
        cls = getattr(transformers, config.architectures[0])
        model, info = cls.from_pretrained(model_folder, output_loading_info=True)
        assert not any(info.values()), (model_folder.name, info)
        save_file(outputs(model, load_inputs(model_folder)), model_folder / "outputs.safetensors")


def load_inputs(folder):
    return load_file(folder / "inputs.safetensors")


def save_inputs(folder, model):
    save_file(
        {name: value.contiguous() for name, value in example_inputs(model).items()},
        folder / "inputs.safetensors",
    )


if __name__ == "__main__":
    main(sys.argv[1])
