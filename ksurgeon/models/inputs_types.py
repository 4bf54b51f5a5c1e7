"""Inputs of the few model types that neither names nor configurations tell enough about."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ksurgeon.models.inputs_example import SAMPLES, TOKENS, Example

__all__ = ["OF_TYPE"]

_Make = Callable[[Example], dict[str, Any]]
_STEPS = 8


def _ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.long)


def _pair_of_images(e: Example) -> dict[str, Any]:
    return {"pixel_values": e.random.normal(1, 2, *e.image_shape())}


def _mono(e: Example) -> dict[str, Any]:
    """Sounds with a dimension of channels."""
    return {"input_values": e.random.normal(1, 1, SAMPLES)}


def _film(e: Example) -> dict[str, Any]:
    return _mono(e) | {"pixel_values_videos": e.random.normal(1, 2, *e.image_shape())}


def _vibevoice(e: Example) -> dict[str, Any]:
    decodes = e.config.model_type.endswith("decoder")
    shape = (e.config.hidden_size, _STEPS) if decodes else (e.config.channels, SAMPLES)
    return {"hidden_states": e.random.normal(1, *shape)}


def _seggpt(e: Example) -> dict[str, Any]:
    """A prompt and a picture, which the model puts one above the other."""
    channels, height, width = e.image_shape()
    names = ("pixel_values", "prompt_pixel_values", "prompt_masks")
    return {name: e.random.normal(1, channels, height // 2, width) for name in names}


def _tvp(e: Example) -> dict[str, Any]:
    side = e.config.max_img_size
    return {"pixel_values": e.random.normal(1, e.config.num_frames, 3, side, side)}


def _two_codecs(e: Example) -> dict[str, Any]:
    """A waveform, and the features that its semantic half takes for the same frames of 20 ms."""
    return _mono(e) | {"input_features": e.random.normal(1, SAMPLES // 320, e.mels())}


def _codes(e: Example) -> dict[str, Any]:
    """A token of text and one for each codebook at every step."""
    books = e.config.num_codebooks
    return {
        "input_ids": e.random.tokens(
            min(e.config.codebook_vocab_size, e.config.vocab_size), _STEPS * (books + 1)
        ).view(1, _STEPS, -1)
    }


def _codebooks(e: Example) -> dict[str, Any]:
    """One sequence of codes for each codebook."""
    ids = e.random.tokens(e.config.vocab_size, e.config.num_codebooks * _STEPS)
    return {"input_ids": ids.view(e.config.num_codebooks, _STEPS), "attention_mask": _ones(1, _STEPS)}


def _dia(e: Example) -> dict[str, Any]:
    decoder = e.config.decoder_config
    tokens = e.random.tokens(decoder.vocab_size, _STEPS * decoder.num_channels)
    return {"decoder_input_ids": tokens.view(1, _STEPS, decoder.num_channels)}


def _mllama(e: Example) -> dict[str, Any]:
    tiles = e.config.vision_config.max_num_tiles
    return {
        "pixel_values": e.random.normal(1, 1, tiles, *e.image_shape()),
        "aspect_ratio_ids": _ones(1, 1),
        "aspect_ratio_mask": _ones(1, 1, tiles),
        "cross_attention_mask": _ones(1, TOKENS, 1, tiles),
    }


def _omdet(e: Example) -> dict[str, Any]:
    classes, task = e.tokens(16, e.config.text_config.vocab_size).view(2, 8), e.tokens(8)
    return {
        "classes_input_ids": classes,
        "classes_attention_mask": torch.ones_like(classes),
        "tasks_input_ids": task,
        "tasks_attention_mask": torch.ones_like(task),
        "classes_structure": torch.tensor([2]),
    }


def _video_session(e: Example) -> dict[str, Any]:
    """Two frames, and a click on the first."""
    module = import_module(type(e.model).__module__)
    session = getattr(module, type(e.model).__name__.removesuffix("Model") + "InferenceSession")
    video = e.random.normal(2, *e.image_shape())
    found = session(
        video=video, video_height=video.shape[-2], video_width=video.shape[-1], dtype=e.random.dtype
    )
    if hasattr(found, "add_prompt"):
        found.add_prompt("a cat")
        prompt = next(iter(found.prompts))
        found.prompt_input_ids[prompt] = e.tokens(TOKENS)
        found.prompt_attention_masks[prompt] = _ones(1, TOKENS)
    else:
        index = found.obj_id_to_idx(1)
        point = {
            "point_coords": torch.full((1, 1, 1, 2), 4.0, dtype=e.random.dtype),
            "point_labels": torch.ones(1, 1, 1, dtype=torch.int32),
        }
        found.add_point_inputs(index, 0, point)
        found.obj_with_new_inputs = [1]
    return {"inference_session": found, "frame_idx": 0}


def _granite_docling(e: Example) -> dict[str, Any]:
    images = e.random.normal(1, 1, *e.image_shape())
    return {"pixel_values": images, "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)}


def _kosmos(e: Example) -> dict[str, Any]:
    queries = e.config.latent_query_num
    mask = torch.cat([torch.zeros(1, 4), torch.ones(1, queries), torch.zeros(1, 4)], 1).long()
    ids = e.tokens(queries + 8)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "image_embeds_position_mask": mask}


def _speecht5(e: Example) -> dict[str, Any]:
    width = e.config.hidden_size
    return {
        "input_values": e.random.normal(1, TOKENS, width),
        "decoder_input_values": e.random.normal(1, _STEPS, width),
    }


def _timesfm(e: Example) -> dict[str, Any]:
    values = e.random.normal(1, e.config.context_length)
    return {
        "past_values": values,
        "past_values_padding": torch.zeros_like(values, dtype=torch.long),
        "freq": torch.zeros(1, 1, dtype=torch.long),
    }


def _luke(e: Example) -> dict[str, Any]:
    positions = torch.full((1, 2, 4), -1)
    positions[0, 0, :2], positions[0, 1, 0] = torch.tensor([1, 2]), 3
    return {
        "entity_ids": torch.tensor([[1, 2]]),
        "entity_position_ids": positions,
        "entity_attention_mask": _ones(1, 2),
    }


def _clap(e: Example) -> dict[str, Any]:
    audio = e.audio or e.config
    return {
        "input_features": e.random.normal(1, 1, 1001, audio.num_mel_bins),
        "is_longer": torch.zeros(1, 1, dtype=torch.bool),
    }


def _minicpm(e: Example) -> dict[str, Any]:
    """Patches one beside the other."""
    vision = e.vision or e.config
    _, rows, columns = e.grid()
    return {"pixel_values": e.random.normal(1, 3, vision.patch_size, vision.patch_size * rows * columns)}


def _square_patches(e: Example) -> dict[str, Any]:
    vision = e.vision or e.config
    frames, rows, columns = e.grid()
    return {"pixel_values": e.random.normal(frames * rows * columns, 3, vision.patch_size, vision.patch_size)}


def _merged_patches(e: Example) -> dict[str, Any]:
    """Squares of patches that are merged, channels last."""
    vision = e.vision or e.config
    side = vision.patch_size * vision.spatial_merge_size
    frames, rows, columns = e.grid()
    return {"pixel_values": e.random.normal(frames * rows * columns, side, side, vision.num_channels)}


def _row_of_patches(e: Example) -> dict[str, Any]:
    width = e.config.num_channels * e.config.patch_size**2
    return {"pixel_values": e.random.normal(1, 4, width)}


def _rows_of_square_patches(e: Example) -> dict[str, Any]:
    return {"pixel_values": _square_patches(e)["pixel_values"][None]}


def _qwen2_audio(e: Example) -> dict[str, Any]:
    frames = 2 * e.config.audio_config.max_source_positions
    return {
        "input_features": e.random.normal(1, e.config.audio_config.num_mel_bins, frames),
        "feature_attention_mask": _ones(1, frames),
    } | e.text_with([("audio", e.config.audio_token_index, (frames // 2 - 2) // 2 + 1)])


def _pi0(e: Example) -> dict[str, Any]:
    images = e.random.normal(1, 1, *e.image_shape())
    with torch.no_grad():
        count = e.model.vlm.get_image_features(images[0].to(e.random.home)).pooler_output.shape[1]
    ids = torch.cat([torch.full((1, count), e.config.vlm_config.image_token_id), e.tokens(_STEPS)], 1)
    actions = e.random.normal(1, _STEPS, e.config.dit_config.hidden_size)
    return {
        "action_embeds": actions,
        "pixel_values": images,
        "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }


def _depth_pro(e: Example) -> dict[str, Any]:
    side = int(e.config.patch_size / min(e.config.scaled_images_ratios))
    return {"pixel_values": e.random.normal(1, 3, side, side)}


def _flash(e: Example) -> dict[str, Any]:
    width = e.config.hidden_size
    return {
        "noise_embeds": e.random.normal(1, _STEPS, width),
        "context_hidden_states": e.random.normal(1, _STEPS, width * len(e.config.target_layer_ids)),
    }


def _longformer(e: Example) -> dict[str, Any]:
    ids = e.input_ids()
    mask = torch.zeros_like(ids)
    mask[:, 0] = 1
    return {"input_ids": ids, "global_attention_mask": mask}


def _stacked(e: Example) -> dict[str, Any]:
    """Frames that the feature extractor has put side by side."""
    audio = e.audio or e.config
    stacked = getattr(audio, "num_stacked_frames", 4)
    return {"input_features": e.random.normal(1, 32, stacked * e.mels()), "input_features_mask": _ones(1, 32)}


def _idefics(e: Example) -> dict[str, Any]:
    return {
        "pixel_values": e.random.normal(1, 1, *e.image_shape()),
        "image_attention_mask": _ones(1, TOKENS, 1),
    }


_NAMES: tuple[tuple[_Make, tuple[str, ...]], ...] = (
    (lambda e: {"input_ids": e.random.tokens(1000, 4 * TOKENS)}, ("canine",)),
    (lambda e: {"input_features": e.random.normal(1, 128, e.mels())}, ("speech_to_text",)),
    (lambda e: {"use_cache": False}, ("blt",)),  # its configuration does not tell the layers of a cache
    (_mono, ("dac", "omniasr", "omniasr_audio", "omniasr_ctc", "xcodec")),
    (_mono, ("pe_audio", "pe_audio_encoder")),
    (_film, ("pe_audio_video", "pe_audio_video_encoder")),
    (_mono, ("vibevoice_acoustic_tokenizer",)),
    (lambda e: _mono(e) | {"padding_mask": _ones(1, SAMPLES)}, ("vibevoice", "vibevoice_asr")),
    (_seggpt, ("seggpt",)),
    (_vibevoice, ("vibevoice_acoustic_tokenizer_encoder", "vibevoice_acoustic_tokenizer_decoder")),
    (_tvp, ("tvp",)),
    (_two_codecs, ("neucodec", "xcodec2")),
    (_stacked, ("fun_asr_nano", "fun_asr_nano_encoder", "granite_speech5_ctc", "granite_speech5_encoder")),
    (_clap, ("clap",)),
    (lambda e: {"input_features": e.random.normal(1, 128, 128)}, ("gemma4_audio",)),  # mels are no option
    (lambda e: {"input_ids": e.tokens()}, ("granite4_vision",)),  # features go to several layers
    (lambda e: {"input_ids": e.tokens()}, ("glm_image",)),  # pictures come with a grid of one to be made
    (lambda e: {"pixel_values": e.random.normal(1, 4, *e.image_shape())}, ("instructblipvideo",)),
    (_merged_patches, ("inkling2", "inkling2_loop", "inkling2_vision")),
    (_qwen2_audio, ("qwen2_audio",)),
    (_speecht5, ("speecht5",)),
    (_codes, ("kyutai_speech_to_text",)),
    (_codebooks, ("musicgen_decoder", "musicgen_melody_decoder")),
    (_dia, ("dia",)),
    (_minicpm, ("minicpm_ocr", "minicpm_ocr_vision", "minicpmv4_6", "minicpmv4_6_vision")),
    (_minicpm, ("minicpmv4_7", "minicpmv4_7_vision")),
    (_square_patches, ("kimi_k25", "kimi_k25_vision", "paddleocr_vl")),
    (_rows_of_square_patches, ("paddleocr_vl_vision",)),
    (_row_of_patches, ("fuyu",)),
    (_granite_docling, ("granite_docling",)),
    (_idefics, ("idefics",)),
    (_kosmos, ("kosmos-2",)),
    (_mllama, ("mllama",)),
    (_pi0, ("pi0",)),
    (_depth_pro, ("depth_pro",)),
    (_omdet, ("omdet-turbo",)),
    (_pair_of_images, ("efficientloftr", "lightglue", "superglue")),
    (_video_session, ("edgetam_video", "sam2_video", "sam3_tracker_video", "sam3_video")),
    (_longformer, ("led", "longformer")),
    (_luke, ("luke",)),
    (_timesfm, ("timesfm", "timesfm2_5")),
    (_flash, ("muse_glimmer_assistant",)),
)
OF_TYPE: dict[str, _Make] = {name: make for make, names in _NAMES for name in names}
