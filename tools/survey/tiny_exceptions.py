"""Small sizes by the names that transformers' configurations have for them, and what some types need else."""

from collections.abc import Mapping
from typing import Any

__all__ = ["EXCEPTIONS", "SIZES"]

_WIDTHS = (
    "cross_hidden_size", "hidden_size", "d_model", "n_embd", "embed_dim", "dim", "emb_dim",
    "embedding_size", "projection_dim", "word_embed_proj_dim", "d_embed", "encoder_hidden_size",
    "decoder_hidden_size", "out_hidden_size", "text_hidden_size", "vision_hidden_size",
    "hidden_size_global", "audio_hidden_size", "adapter_in_dim", "adapter_out_dim",
    "adapter_input_size", "adaptor_input_dim",
)  # fmt: skip
_HIDDEN = (
    "intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_inner", "n_inner",
    "hidden_dim", "moe_intermediate_size", "shared_expert_intermediate_size",
    "encoder_intermediate_size", "ffn_hidden_size", "decoder_intermediate_size",
    "expert_ffn_hidden_size", "dim_feedforward", "mlp_dim", "t2u_encoder_ffn_dim",
    "t2u_decoder_ffn_dim", "speech_encoder_intermediate_size",
)  # fmt: skip
_HEADS = (
    "num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads",
    "decoder_attention_heads", "encoder_num_attention_heads", "decoder_num_attention_heads",
)  # fmt: skip
_EXPERTS = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts",
)  # fmt: skip
_OTHER = {
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_k": 2, "moe_topk": 2, "num_queries": 16,
    "n_group": 2, "topk_group": 1, "num_expert_group": 2, "vocab_size": 128,
    "vocab_size_per_layer_input": 128, "image_size": 32, "patch_size": 8,
    "max_position_embeddings": 128, "n_positions": 128, "max_source_positions": 32,
    "max_target_positions": 32, "num_mel_bins": 16, "num_labels": 3, "num_filters": 8, "n_window": 8,
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

_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
_ROPES = {"full_attention": _ROPE, "sliding_attention": _ROPE}
_SERIES: dict[str, Any] = {"prediction_length": 7, "context_length": 14}
_LAYERS: dict[str, Any] = {"num_hidden_layers": 4}
_GLM: dict[str, Any] = {
    "rope_parameters": _ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]},
    "head_dim": 128,
}
_STARTS = {
    "vision_start_token_id": 100,
    "vision_end_token_id": 101,
    "audio_start_token_id": 102,
    "audio_end_token_id": 103,
}
_PINPOINTS: dict[str, Any] = {"image_grid_pinpoints": [[32, 64], [64, 32]]}
_SAM_VISION = {"backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}
_SAM: dict[str, Any] = {
    "vision_config": _SAM_VISION
    | {"backbone_config": {"model_type": "sam2_hiera_det_model", "image_size": [128, 128]}},
    "prompt_encoder_config": {"image_size": 128, "patch_size": 16},
}
_VOCODER = {
    "unit_embed_dim": 64,
    "unit_hifi_gan_vocab_size": 64,
    "upsample_initial_channel": 64,
    "lang_embed_dim": 16,
}
_LCNET = {
    "model_type": "pp_lcnet_v4",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
    "block_configs": [
        [[3, 96, 96, 1, True]], [[3, 96, 96, 2, False]], [[3, 96, 192, 2, False]], [[3, 192, 384, 2, False]],
    ],
}  # fmt: skip
_EDGETAM: dict[str, Any] = {
    **_SAM_VISION,
    "backbone_config": {
        "model_type": "timm_wrapper",
        "architecture": "repvit_m1",
        "num_classes": 2,
        "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
    },
}
_PE: dict[str, Any] = {
    "model_type": "timm_wrapper",
    "architecture": "vit_pe_core_large_patch14_336",
    "num_classes": 64,
    "do_pooling": True,
    "global_pool": "map",
    "initializer_range": 0.02,
    "model_args": {
        "depth": 2,
        "embed_dim": 64,
        "num_heads": 2,
        "img_size": [28, 28],
        "ref_feat_shape": [2, 2],
    },
}
_EFFICIENT: dict[str, Any] = {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640}

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "align": {"vision_config": _EFFICIENT, "projection_dim": 160},
    "autoformer": _SERIES,
    "informer": _SERIES,
    "time_series_transformer": _SERIES,
    "bamba": _LAYERS | {"attn_layer_indices": [1]},
    "blip-2": {"image_token_index": 100},
    "instructblip": {"image_token_index": 100},
    "instructblipvideo": {"video_token_index": 100},
    "chameleon": {"vocabulary_map": {"<image>": 100}},
    "cohere_compass_text": {"rope_parameters": _ROPES},
    "csm": {"codec_config": {"model_type": "mimi", "upsample_groups": 16}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "efficientnet": _EFFICIENT,
    "gemma3n": {"vision_config": {"model_type": "gemma3n_vision", "hidden_size": 2048}},
    "gemma3n_text": {"num_kv_shared_layers": 0, "intermediate_size": 64},
    "gemma3n_vision": {"model_args": {"channel_multiplier": 0.25}},
    "glm4v_moe_text": _GLM,
    "glm4v_text": _GLM,
    "glm_image_text": _GLM,
    "glm_ocr_text": _GLM,
    "granitemoehybrid": {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "llava_next": _PINPOINTS,
    "llava_next_video": _PINPOINTS,
    "llava_onevision": _PINPOINTS,
    "mllama": {"vision_config": {"vision_output_dim": 512}},
    "qwen2_5_omni_thinker": _STARTS,
    "qwen3_omni_moe_thinker": _STARTS,
    "sam2": _SAM,
    "sam2_video": _SAM | {"image_size": 128},
    "sam2_vision_model": _SAM["vision_config"],
    "sam2_hiera_det_model": {"image_size": [128, 128]},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "timm_backbone": {"backbone": "resnet18"},
    "esm": {"pad_token_id": 0, "mask_token_id": 4},
    "apertus1p5": {
        "text_config": {"vocab_size": 512},
        "vision_config": {"codebook_size": 64, "base_channels": 32},
        "audio_config": {"model_type": "wavtokenizer_encoder", "codebook_size": 64},
        "image_token_id": 150,
        "audio_token_id": 151,
        "image_token_offset": 200,
        "audio_token_offset": 264,
    },
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "deepseek_ocr2_text": {
        "num_experts_per_tok": 2,
        "mlp_layer_types": ["dense", "sparse"],
        "num_hidden_layers": 2,
    },
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    "edgetam_vision_model": _EDGETAM,
    "edgetam": {"vision_config": _EDGETAM, "prompt_encoder_config": _SAM["prompt_encoder_config"]},
    "emu3": {"vq_config": {"base_channels": 32}, "vocabulary_map": {"<image>": 100}},
    "granite4_vision": _PINPOINTS
    | {"deepstack_layer_map": [[-1, 0]], "spatial_target_layers": [1], "downsample_rate": "1/2"},
    "lw_detr_vit": {"image_size": 64},
    "muse_spark": {"out_hidden_size": 1024, "projector_hidden_size": 64},
    "muse_spark_audio": {"hidden_sizes": [32, 64, 64, 128]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_dense_layers": 1},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "longcat_flash": {"zero_expert_num": 2},
    "mistral_large4_text": {
        "num_hidden_layers": 2,
        "kv_source_layers": [0, 0],
        "mlp_layer_types": ["dense", "sparse"],
        "layer_types": ["indexed_attention"] * 2,
    },
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, -2]}},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "pe_video_encoder": {"vision_config": _PE},
    "pe_audio_video_encoder": {"video_config": {"vision_config": _PE}},
    "pe_audio_video": {"audio_video_config": {"video_config": {"vision_config": _PE}}},
    "pe_video": {"video_config": {"vision_config": _PE}},
    "perceiver": {"d_latents": 64, "num_latents": 16, "num_self_attends_per_block": 2},
    "perception_lm": {"vision_config": _PE},
    "pp_ocrv6_medium_det": {
        "intraclass_block_config": {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]}
        | {
            f"{way}_{ratio}ratio": [
                [size, 1] if "vert" in way else [1, size] if "hori" in way else size,
                1,
                pad,
            ]
            for way in ("vertical_long_to_small_conv", "horizontal_small_to_long_conv", "symmetric_conv_long")
            for ratio, size in (("long", 7), ("mid", 5), ("short", 3))
            for pad in ([[size // 2, 0] if "vert" in way else [0, size // 2] if "hori" in way else size // 2])
        },
        "backbone_config": _LCNET,
        "scale_factor_list": [1, 2, 4, 8],
        "kernel_list": [3, 2, 2],
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 64,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "ple_layer_ids": [1],
        "ple_embed_dim": 64,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 17,
        "make_ngram_vocab_size_divisible_by": 4,
        "split_ngram_parts": 4,
        "eos_token_id": 2,
        "rope_parameters": _ROPE | {"partial_rotary_factor": 0.25, "mrope_section": [11, 11, 10]},
    },
    "seamless_m4t": _VOCODER,
    "seamless_m4t_v2": _VOCODER,
    "t5gemma2_encoder": {"text_config": {"dropout_rate": 0.0}},
    "wavtokenizer": {"hidden_size": 512},
    "wavtokenizer_encoder": {"hidden_size": 512},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "granite_speech": {"encoder_config": {"hidden_dim": 256}},
    "granite_speech_plus": {"encoder_config": {"hidden_dim": 256}},
    "kimi_k25": {"projection_hidden_size": 256},
    "llama4_vision_model": {
        "intermediate_size": 1024,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
        "vision_output_dim": 64,
    },
    "muse_glimmer": {"out_hidden_size": 1024, "projector_hidden_size": 64},
    "edgetam_video": {
        "image_size": 256,
        "vision_config": {
            **_EDGETAM,
            "model_type": "edgetam_vision_model",
            "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
        },
        "prompt_encoder_config": {"image_size": 256, "patch_size": 16},
    },
    "hunyuan_vl_text": {"head_dim": 128, "rope_parameters": _ROPE | {"mrope_section": [16, 24, 24]}},
    "lw_detr": {"projector_scale_factors": [2.0, 0.5]},
    "neucodec": {"quantization_dim": 512},
    "xcodec2": {"quantization_dim": 512},
    "pp_ocrv6_small_det": {"backbone_config": _LCNET, "layer_list_out_channels": [96, 96, 192, 384]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "sapiens2": {
        "num_hidden_layers": 2,
        "num_key_value_attention_heads": 2,
        "num_key_value_heads_per_layer": [4, 2],
        "num_first_full_attention_layers": 1,
        "num_last_full_attention_layers": 0,
    },
    "seggpt": {"merge_index": 0},
    "tvp": {"max_img_size": 96, "num_frames": 2, "visual_prompt_size": 8},
    "uvdoc": {"backbone_config": {"model_type": "uvdoc_backbone", "out_indices": [1, 2, 3, 4, 5, 6]}},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "voxtral": {"audio_token_id": 110},
    "minicpm_ocr": {"image_token_id": 100},
    "minicpmv4_6": {"image_token_id": 100},
    "minicpmv4_7": {"image_token_id": 100},
    "vjepa2": {"frames_per_clip": 4, "crop_size": 64},
    "xmod": {"default_language": "en_XX"},
}
