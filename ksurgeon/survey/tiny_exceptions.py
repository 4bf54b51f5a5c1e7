"""Small sizes by the names that transformers' configurations have for them, and what some types need else."""

from collections.abc import Mapping
from typing import Any

__all__ = ["EXCEPTIONS", "SIZES"]

_WIDTHS = (
    "hidden_size d_model n_embd embed_dim dim emb_dim embedding_size projection_dim word_embed_proj_dim d_embed "
    "encoder_hidden_size decoder_hidden_size out_hidden_size text_hidden_size vision_hidden_size "
    "adapter_in_dim adapter_out_dim adapter_input_size adaptor_input_dim"
).split()
_HIDDEN = (
    "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim d_inner n_inner hidden_dim "
    "moe_intermediate_size shared_expert_intermediate_size encoder_intermediate_size ffn_hidden_size "
    "decoder_intermediate_size expert_ffn_hidden_size dim_feedforward mlp_dim"
).split()
_HEADS = (
    "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads "
    "encoder_num_attention_heads decoder_num_attention_heads"
).split()
_EXPERTS = "num_experts num_local_experts n_routed_experts moe_num_experts".split()
_OTHER = {
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_k": 2, "moe_topk": 2, "num_queries": 16, "n_group": 2, "topk_group": 1, "num_expert_group": 2, "vocab_size": 128, "vocab_size_per_layer_input": 128,
    "image_size": 32, "patch_size": 8, "max_position_embeddings": 128, "n_positions": 128,
    "max_source_positions": 32, "max_target_positions": 32, "num_mel_bins": 16, "num_labels": 3,
    "mm_tokens_per_image": 4, "context_length": 64, "entity_vocab_size": 64, "t2u_vocab_size": 64,
}  # fmt: skip


def _sizes(width: int) -> dict[str, int]:
    return (
        dict.fromkeys(_WIDTHS, width)
        | dict.fromkeys(_HIDDEN, 64)
        | dict.fromkeys(_HEADS, 4)
        | dict.fromkeys(_EXPERTS, 4)
        | _OTHER
    )


SIZES: tuple[Mapping[str, int], ...] = (
    _sizes(256),
    _sizes(32) | {"head_dim": 8, "d_kv": 8, "d_head": 8, "num_key_value_heads": 2},
    {"vocab_size": 128} | dict.fromkeys(_EXPERTS, 4),
)

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_ROPES = {"full_attention": _ROPE, "sliding_attention": _ROPE}
_SERIES = {"prediction_length": 4}
_LAYERS = {"num_hidden_layers": 4}
_GLM = {
    "rope_parameters": _ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]},
    "head_dim": 128,
}
_STARTS = {"vision_start_token_id": 100, "vision_end_token_id": 101, "audio_start_token_id": 102, "audio_end_token_id": 103}
_PINPOINTS = {"image_grid_pinpoints": [[32, 64], [64, 32]]}
_SAM_VISION = {"backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}
_SAM = {
    "vision_config": _SAM_VISION | {"backbone_config": {"model_type": "sam2_hiera_det_model", "image_size": [128, 128]}},
    "prompt_encoder_config": {"image_size": 128, "patch_size": 16},
}
_EFFICIENT = {"width_coefficient": 0.5, "depth_coefficient": 0.5}

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "align": {"vision_config": _EFFICIENT},
    "autoformer": _SERIES,
    "informer": _SERIES,
    "time_series_transformer": _SERIES,
    "bamba": _LAYERS | {"attn_layer_indices": [1]},
    "blip-2": {"image_token_index": 100},
    "instructblip": {"image_token_index": 100},
    "instructblipvideo": {"video_token_index": 100},
    "chameleon": {"vocabulary_map": {"<image>": 100}},
    "emu3": {"vocabulary_map": {"<image>": 100}},
    "cohere_compass": {"text_config": {"rope_parameters": _ROPES}},
    "cohere_compass_text": {"rope_parameters": _ROPES},
    "csm": {"codec_config": {"model_type": "mimi", "upsample_groups": 16}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "efficientnet": _EFFICIENT,
    "gemma3n": {"text_config": {"num_kv_shared_layers": 0}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma3n_vision": {"model_args": {"channel_multiplier": 0.25}},
    "glm46v": {"text_config": _GLM},
    "glm4v": {"text_config": _GLM},
    "glm4v_moe": {"text_config": _GLM},
    "glm4v_moe_text": _GLM,
    "glm4v_text": _GLM,
    "glm_image": {"text_config": _GLM},
    "glm_image_text": _GLM,
    "glm_ocr": {"text_config": _GLM},
    "glmga": {"text_config": _GLM},
    "granitemoehybrid": {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "llava_next": _PINPOINTS,
    "llava_next_video": _PINPOINTS,
    "llava_onevision": _PINPOINTS,
    "granite4_vision": _PINPOINTS,
    "mllama": {"vision_config": {"vision_output_dim": 512}},
    "qwen2_5_omni_thinker": _STARTS,
    "qwen3_omni_moe_thinker": _STARTS,
    "sam2": _SAM,
    "sam2_video": _SAM,
    "sam2_vision_model": _SAM["vision_config"],
    "sam2_hiera_det_model": {"image_size": [128, 128]},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "timm_backbone": {"backbone": "resnet18"},
    "xmod": {"default_language": "en_XX"},
}
