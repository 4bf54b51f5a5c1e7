"""Inputs of model types that take sound, or codes of it, and do not tell enough about it."""

from typing import Any

import torch

from ksurgeon.models.inputs_example import SAMPLES, STEPS, TOKENS, Example, Make, ones

__all__ = ["SOUND"]


def _mono(e: Example) -> dict[str, Any]:
    """Sounds with a dimension of channels."""
    return {"input_values": e.random.normal(1, 1, SAMPLES)}


def _film(e: Example) -> dict[str, Any]:
    return _mono(e) | {"pixel_values_videos": e.random.normal(1, 2, *e.image_shape())}


def _vibevoice(e: Example) -> dict[str, Any]:
    decodes = e.config.model_type.endswith("decoder")
    shape = (e.config.hidden_size, STEPS) if decodes else (e.config.channels, SAMPLES)
    return {"hidden_states": e.random.normal(1, *shape)}


def _two_codecs(e: Example) -> dict[str, Any]:
    """A waveform, and the features that its semantic half takes for the same frames of 20 ms."""
    return _mono(e) | {"input_features": e.random.normal(1, SAMPLES // 320, e.mels())}


def _codes(e: Example) -> dict[str, Any]:
    """A token of text and one for each codebook at every step."""
    books = e.config.num_codebooks
    return {
        "input_ids": e.random.tokens(
            min(e.config.codebook_vocab_size, e.config.vocab_size), STEPS * (books + 1)
        ).view(1, STEPS, -1)
    }


def _codebooks(e: Example) -> dict[str, Any]:
    """One sequence of codes for each codebook."""
    ids = e.random.tokens(e.config.vocab_size, e.config.num_codebooks * STEPS)
    return {"input_ids": ids.view(e.config.num_codebooks, STEPS), "attention_mask": ones(1, STEPS)}


def _dia(e: Example) -> dict[str, Any]:
    decoder = e.config.decoder_config
    tokens = e.random.tokens(decoder.vocab_size, STEPS * decoder.num_channels)
    return {"decoder_input_ids": tokens.view(1, STEPS, decoder.num_channels)}


def _speecht5(e: Example) -> dict[str, Any]:
    width = e.config.hidden_size
    return {
        "input_values": e.random.normal(1, TOKENS, width),
        "decoder_input_values": e.random.normal(1, STEPS, width),
    }


def _clap(e: Example) -> dict[str, Any]:
    audio = e.audio or e.config
    return {
        "input_features": e.random.normal(1, 1, 1001, audio.num_mel_bins),
        "is_longer": torch.zeros(1, 1, dtype=torch.bool),
    }


def _qwen2_audio(e: Example) -> dict[str, Any]:
    frames = 2 * e.config.audio_config.max_source_positions
    return {
        "input_features": e.random.normal(1, e.config.audio_config.num_mel_bins, frames),
        "feature_attention_mask": ones(1, frames),
    } | e.text_with([("audio", e.config.audio_token_index, (frames // 2 - 2) // 2 + 1)])


def _stacked(e: Example) -> dict[str, Any]:
    """Frames that the feature extractor has put side by side."""
    audio = e.audio or e.config
    stacked = getattr(audio, "num_stacked_frames", 4)
    return {"input_features": e.random.normal(1, 32, stacked * e.mels()), "input_features_mask": ones(1, 32)}


_NAMES: tuple[tuple[Make, tuple[str, ...]], ...] = (
    (lambda e: {"input_features": e.random.normal(1, 128, e.mels())}, ("speech_to_text",)),
    (_mono, ("dac", "omniasr", "omniasr_audio", "omniasr_ctc", "xcodec")),
    (_mono, ("pe_audio", "pe_audio_encoder")),
    (_film, ("pe_audio_video", "pe_audio_video_encoder")),
    (_mono, ("vibevoice_acoustic_tokenizer",)),
    (lambda e: _mono(e) | {"padding_mask": ones(1, SAMPLES)}, ("vibevoice", "vibevoice_asr")),
    (_vibevoice, ("vibevoice_acoustic_tokenizer_encoder", "vibevoice_acoustic_tokenizer_decoder")),
    (_two_codecs, ("neucodec", "xcodec2")),
    (_stacked, ("fun_asr_nano", "fun_asr_nano_encoder", "granite_speech5_ctc", "granite_speech5_encoder")),
    (_clap, ("clap",)),
    (lambda e: {"input_features": e.random.normal(1, 128, 128)}, ("gemma4_audio",)),  # mels are no option
    (_qwen2_audio, ("qwen2_audio",)),
    (_speecht5, ("speecht5",)),
    (_codes, ("kyutai_speech_to_text",)),
    (_codebooks, ("musicgen_decoder", "musicgen_melody_decoder")),
    (_dia, ("dia",)),
)
SOUND: dict[str, Make] = {name: make for make, names in _NAMES for name in names}
