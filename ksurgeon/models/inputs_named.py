"""How each input of transformers' models is made, by its name."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ksurgeon.models.inputs_example import SAMPLES, TOKENS, Example
from ksurgeon.models.inputs_random import resized

__all__ = ["ALONGSIDE", "MAKERS"]


def _pixels(e: Example) -> Tensor:
    taken = e.packed
    if "grid_thw" in taken or "image_grid_thw" in taken:
        frames, rows, columns = e.grid()
        return e.random.normal(frames * rows * columns, e.patch_size())
    if {"spatial_shapes", "pixel_position_ids", "image_position_ids"} & set(taken):
        _, rows, columns = e.grid()
        return e.random.normal(1, rows * columns, e.patch_size())
    if "pixel_attention_mask" in taken:
        return e.random.normal(1, 1, *e.image_shape())
    if "image_sizes" in taken and e.get("image_grid_pinpoints", parts=(e.config,)):
        return e.random.normal(1, e.tiles(), *e.image_shape())
    return e.image()


def _videos(e: Example) -> Tensor:
    if "video_grid_thw" in e.packed:
        frames, rows, columns = e.grid()
        return e.random.normal(frames * rows * columns, e.patch_size())
    frames = e.get("num_frames", "frames_per_clip", parts=(e.vision, e.config), default=2)
    return e.random.normal(1, frames, *e.image_shape())


def _grid(e: Example) -> Tensor:
    return torch.tensor([e.grid()])


def _positions(e: Example) -> Tensor:
    _, rows, columns = e.grid()
    return torch.cartesian_prod(torch.arange(columns), torch.arange(rows)).flip(1)[None]


def _pixel_mask(e: Example) -> Tensor:
    _, rows, columns = e.grid()
    shape = (rows * columns,) if "spatial_shapes" in e.packed else (1, *e.image_shape()[-2:])
    return torch.ones(1, *shape, dtype=torch.long)


def _waveform(e: Example) -> Tensor:
    mels, length = e.get("num_mel_bins"), e.get("max_length", parts=(e.config,))
    channels = e.get("audio_channels", parts=(e.config, e.audio))
    shape: tuple[int, ...] = (channels, SAMPLES) if isinstance(channels, int) else (SAMPLES,)
    if isinstance(mels, int) and isinstance(length, int):
        shape = (length, mels)
    elif samples := e.get("samples_per_token", parts=(e.config, e.audio)):
        shape = (SAMPLES // samples * samples,)
    return e.random.normal(1, *resized(shape, e.sizes))


def _decoder_ids(e: Example) -> Tensor:
    return e.tokens(TOKENS, e.config.get_text_config(decoder=True).vocab_size)


def _ones_like(name: str) -> Callable[[Example], Tensor]:
    return lambda e: torch.ones(e.values[name].shape[:2], dtype=torch.long)


def _sound_mask(e: Example) -> Tensor:
    features = e.values["input_features"]
    length = features.shape[2] if features.shape[1] == e.mels() else features.shape[1]
    return torch.ones(1, length, dtype=torch.long)


def _patch_series(e: Example) -> Tensor:
    length = e.get("context_length", default=64)
    channels = e.get("num_input_channels", "input_size", default=1)
    lags = e.get("lags_sequence")
    if lags:
        length += max(lags)
        return e.random.normal(1, length) if channels == 1 else e.random.normal(1, length, channels)
    return e.random.normal(1, length, channels)


def _time_features(past: bool) -> Callable[[Example], Tensor]:
    def make(e: Example) -> Tensor:
        steps = e.values["past_values"].shape[1] if past else e.config.prediction_length
        return e.random.normal(1, steps, e.config.num_time_features)

    return make


MAKERS: dict[str, Callable[[Example], Any]] = {
    "input_ids": Example.input_ids,
    "attention_mask": _ones_like("input_ids"),
    "decoder_input_ids": _decoder_ids,
    "pixel_values": _pixels,
    "pixel_values_videos": _videos,
    "grid_thw": _grid,
    "image_grid_thw": _grid,
    "video_grid_thw": _grid,
    "pixel_position_ids": _positions,
    "image_position_ids": _positions,
    "spatial_shapes": lambda e: torch.tensor([e.grid()[1:]]),
    "pixel_attention_mask": _pixel_mask,
    "image_sizes": lambda e: torch.tensor([e.image_shape()[-2:]]),
    "input_values": _waveform,
    "input_features": Example.sound_features,
    "bbox": lambda e: torch.arange(4).expand(*e.values["input_ids"].shape, 4) * 2,
    "input_features_mask": _sound_mask,
    "feature_attention_mask": _sound_mask,
    "high_res_pixel_values": lambda e: e.random.normal(
        1, 3, *([e.get("image_size", parts=(e.config.high_res_vision_config,))] * 2)
    ),
    "past_values": _patch_series,
    "past_time_features": _time_features(True),
    "past_observed_mask": lambda e: torch.ones_like(e.values["past_values"]),
    "future_values": lambda e: e.random.normal(1, e.config.prediction_length),
    "future_time_features": _time_features(False),
    "visual_feats": lambda e: e.random.normal(1, 4, e.config.visual_feat_dim),
    "visual_pos": lambda e: e.random.normal(1, 4, e.config.visual_pos_dim),
    "visual_embeds": lambda e: e.random.normal(1, 4, e.config.visual_embedding_dim),
    "query_embeds": lambda e: e.random.normal(1, 4, e.config.hidden_size),
    "encoder_hidden_states": lambda e: e.random.normal(1, 4, e.config.encoder_hidden_size),
    "qformer_input_ids": lambda e: e.tokens(8, e.config.qformer_config.vocab_size),
    "qformer_attention_mask": _ones_like("qformer_input_ids"),
    "states": lambda e: e.random.normal(1, 4, e.config.state_dim),
    "actions": lambda e: e.random.normal(1, 4, e.config.act_dim),
    "rewards": lambda e: e.random.normal(1, 4, 1),
    "returns_to_go": lambda e: e.random.normal(1, 4, 1),
    "timesteps": lambda e: torch.arange(4)[None],
    "inputs": lambda e: e.random.normal(1, TOKENS, e.config.d_model),
    "task_inputs": lambda e: e.tokens(e.config.task_seq_len, e.config.text_encoder_vocab_size),
    "xpath_tags_seq": lambda e: torch.zeros(
        *e.values["input_ids"].shape, e.config.max_depth, dtype=torch.long
    ),
    "xpath_subs_seq": lambda e: torch.zeros(
        *e.values["input_ids"].shape, e.config.max_depth, dtype=torch.long
    ),
    "audio_mel": lambda e: e.random.normal(1, 128, e.config.input_feat_size),
    "audio_mel_mask": lambda e: torch.zeros(1, 128, dtype=torch.bool),
    "latents": lambda e: e.random.normal(1, e.config.hidden_size, TOKENS),
    "hidden_states": lambda e: (
        _pixels(e) if "grid_thw" in e.accepted else e.random.normal(1, TOKENS, e.config.hidden_size)
    ),
    "audio_input_features": Example.sound_features,
    "merge_sizes": lambda e: torch.tensor([2]),
    "image_merge_sizes": lambda e: torch.tensor([2]),
    "target_sizes": lambda e: torch.tensor([e.grid()[1:]], dtype=torch.int32),
    "inputs_embeds": lambda e: e.random.normal(1, TOKENS, e.text.hidden_size),
}

ALONGSIDE: dict[str, Callable[[Example, set[str]], bool]] = {
    "attention_mask": lambda e, wanted: "input_ids" in wanted,
    "decoder_input_ids": lambda e, wanted: bool(getattr(e.config, "is_encoder_decoder", False)),
    "bbox": lambda e, wanted: "input_ids" in wanted,
    "target_sizes": lambda e, wanted: "pixel_values" in wanted,
    "spatial_shapes": lambda e, wanted: "pixel_values" in wanted,
    "pixel_attention_mask": lambda e, wanted: "spatial_shapes" in e.accepted,
    "input_features_mask": lambda e, wanted: "input_features" in wanted,
    "past_time_features": lambda e, wanted: True,
    "past_observed_mask": lambda e, wanted: "past_time_features" in e.accepted,
    "future_values": lambda e, wanted: "future_time_features" in e.accepted,
    "future_time_features": lambda e, wanted: True,
    "visual_feats": lambda e, wanted: True,
    "visual_pos": lambda e, wanted: True,
    "visual_embeds": lambda e, wanted: True,
    "qformer_attention_mask": lambda e, wanted: True,
    "actions": lambda e, wanted: True,
    "rewards": lambda e, wanted: True,
    "returns_to_go": lambda e, wanted: True,
    "timesteps": lambda e, wanted: "states" in wanted,
    "encoder_hidden_states": lambda e, wanted: "query_embeds" in wanted,
    "input_features": lambda e, wanted: e.audio is not None and e.placeholder("audio") is None,
    "xpath_tags_seq": lambda e, wanted: True,
    "xpath_subs_seq": lambda e, wanted: True,
    "grid_thw": lambda e, wanted: "pixel_values" in wanted,
}
