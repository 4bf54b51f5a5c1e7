"""Small models with random weights of every model type of transformers."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["build", "names", "shrink"]

_SMALL = {
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "embed_dim": 32, "dim": 32, "emb_dim": 32,
    "embedding_size": 32, "projection_dim": 32, "word_embed_proj_dim": 32, "d_embed": 32,
    "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "n_layers": 2, "encoder_layers": 2,
    "decoder_layers": 2, "num_decoder_layers": 2, "num_encoder_layers": 2, "num_blocks": 2,
    "num_attention_heads": 4, "num_heads": 4, "n_head": 4, "n_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "d_head": 8,
    "intermediate_size": 64, "d_ff": 64, "ffn_dim": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "d_inner": 64, "n_inner": 64, "hidden_dim": 64, "moe_intermediate_size": 32, "num_experts": 4,
    "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "vocab_size": 96,
    "image_size": 32, "patch_size": 8, "max_position_embeddings": 64, "n_positions": 64,
    "max_source_positions": 32, "max_target_positions": 32, "num_mel_bins": 16, "num_labels": 3,
}  # fmt: skip
_FEWER = {key: _SMALL[key] for key in _SMALL if "layer" in key or key in ("num_blocks", "vocab_size")}
_WIDE = _SMALL | {
    "hidden_size": 256, "num_attention_heads": 2, "num_heads": 2, "num_key_value_heads": 2, "head_dim": 128,
    "intermediate_size": 256,
}  # fmt: skip
_LARGEST = 130_000_000


def names() -> list[str]:
    """Every model type that has a base model."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return sorted(MODEL_MAPPING_NAMES)


def build(name: str) -> Iterator[nn.Module]:
    """The model in eval mode; then, if there are any, other sizes of it.

    Raises:
        RuntimeError: none can be built that is small.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    failures = []
    for small in (_SMALL, None, _WIDE, _FEWER):
        try:
            config = CONFIG_MAPPING[name]()
            if small is None:  # the configuration derives its other sizes from the small ones
                config = CONFIG_MAPPING[name](**_given(config))
            else:
                shrink(config, small)
            classes = MODEL_MAPPING[type(config)]
            cls = classes[0] if isinstance(classes, tuple) else classes
            with torch.device("meta"):
                size = sum(p.numel() for p in cls(config).parameters())
            if size > _LARGEST:
                raise RuntimeError(f"{size / 1e6:.0f} million parameters")
            torch.manual_seed(0)
            model = cls(config).eval()
        except Exception as error:
            failures.append(f"{type(error).__name__}: {str(error).strip()[:80]}")
        else:
            yield model
    if len(failures) == 4:
        raise RuntimeError(f"no small configuration: {'; '.join(failures)}")


def shrink(config: Any, small: dict[str, int]) -> None:
    """Set sizes of a configuration of transformers, and of those in it, to small ones where it has them."""
    for key, value in list(vars(config).items()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            shrink(value, small)
        elif key in small and isinstance(value, int) and not isinstance(value, bool) and value > small[key]:
            setattr(config, key, small[key])
    for token in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        given = getattr(config, token, None)
        if isinstance(given, int) and given >= small.get("vocab_size", given + 1):
            setattr(config, token, 0)


def _given(config: Any) -> dict[str, Any]:
    """Small sizes for the sizes that a configuration has, and for those in it."""
    small: dict[str, Any] = {}
    for key, value in vars(config).items():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            small[key] = {"model_type": value.model_type} | _given(value)
        elif key in _SMALL and key != "head_dim" and type(value) is int and value > _SMALL[key]:
            small[key] = _SMALL[key]
    return small
