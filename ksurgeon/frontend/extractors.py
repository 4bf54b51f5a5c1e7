"""The feature extractors of transformers as pipelines, one small function for each family."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ksurgeon.errors import StructureError
from ksurgeon.frontend.pipeline import Pipeline
from ksurgeon.frontend.steps import Affine, Fill, Length, Normalise, Range, Repeat, Stack, Step

__all__ = ["EXTRACTORS", "WAVEFORMS", "pipeline_of", "prove"]

_KALDI_FLOOR = 1.192092955078125e-07
_TOLERANCE = 1e-4


def _window(size: int, name: str = "hann", periodic: bool = True) -> Tensor:
    from transformers.audio_utils import window_function

    return torch.from_numpy(window_function(size, name, periodic=periodic))


def _centred(window: Tensor, size: int) -> Tensor:
    """The window in the middle of a frame of ``size`` samples, as ``torch.stft`` puts it."""
    left = (size - len(window)) // 2
    return torch.nn.functional.pad(window, (left, size - len(window) - left))


def _filters(e: Any) -> Tensor:
    return torch.as_tensor(np.asarray(e.mel_filters)).to(torch.float64)


def _kaldi(e: Any, window: str, scale: float, steps: tuple[Step, ...]) -> Pipeline:
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        257, e.num_mel_bins, 20, e.sampling_rate // 2, e.sampling_rate, None, "kaldi", True
    )
    return Pipeline(
        n_fft=512, hop=160, window=_window(400, window, False), filters=torch.from_numpy(filters),
        scale=scale,
        remove_dc=True, frame_preemphasis=0.97, floor=_KALDI_FLOOR, log="log", steps=steps, valid=(-400, 1),
        double=True,
    )  # fmt: skip


def _whisper(e: Any, **changes: Any) -> Pipeline:
    half = e.n_fft // 2
    options: dict[str, Any] = {
        "n_fft": e.n_fft, "hop": e.hop_length, "window": _window(e.n_fft), "filters": _filters(e),
        "pad": (half, half), "drop_last": 1, "floor": 1e-10, "log": "log10", "time_last": True,
        "cut_to": e.n_samples, "pad_to": e.n_samples, "valid": (e.hop_length - 1, 0),
        "steps": (Range(8.0), Affine(4.0, 0.25)),
    }  # fmt: skip
    return Pipeline(**options | changes)


def _qwen(e: Any) -> Pipeline:
    steps = (Range(8.0), Affine(4.0, 0.25), Length(multiple=2 * e.n_window))
    return _whisper(e, cut_to=None, least=e.min_length, steps=steps)


def _voxtral(e: Any) -> Pipeline:
    half, top = e.n_fft // 2, e.global_log_mel_max
    if top is None:
        raise StructureError("a VoxtralRealtimeFeatureExtractor without global_log_mel_max mixes the clips")
    return Pipeline(
        n_fft=e.n_fft, hop=e.hop_length, window=_window(e.n_fft), filters=_filters(e), pad=(half, half),
        drop_last=1, floor=1e-10, log="log10", time_last=True, valid=(-e.win_length, 1),
        steps=(Range(8.0, top), Affine(4.0, 0.25)),
    )  # fmt: skip


def _ast(e: Any) -> Pipeline:
    steps: tuple[Step, ...] = (Fill(), Length(e.max_length, cut=True))
    if e.do_normalize:
        steps += (Affine(-e.mean, 0.5 / e.std),)
    return _kaldi(e, "hann", 1.0, steps)


def _speech_to_text(e: Any) -> Pipeline:
    steps: tuple[Step, ...] = (Fill(),)
    if e.do_ceptral_normalize:
        norm = Normalise(means=e.normalize_means, deviations=e.normalize_vars)
        steps = (norm, Fill(e.padding_value))
    return _kaldi(e, "povey", 2.0**15, steps)


def _seamless(e: Any) -> Pipeline:
    fill = e.padding_value
    steps = (
        Normalise(correction=1, inside=1e-7),
        Fill(fill),
        Length(multiple=2, value=fill),
        Stack(e.stride),
    )
    return _kaldi(e, "povey", 2.0**15, steps)


def _speecht5(e: Any) -> Pipeline:
    half = e.sample_size // 2
    return Pipeline(
        n_fft=e.n_fft, hop=e.sample_stride, window=torch.from_numpy(e.window), filters=_filters(e),
        pad=(half, half), pad_clips=True, power=1, floor=e.mel_floor, log="log10",
        steps=(Fill(e.padding_value),), valid=(2 * half - e.sample_size, 1), double=True,
    )  # fmt: skip


def _clap(e: Any) -> Pipeline:
    half, fusion = e.fft_window_size // 2, e.truncation == "fusion"
    if e.padding not in ("repeatpad", "pad"):
        raise StructureError(f'a ClapFeatureExtractor with padding="{e.padding}": give "repeatpad" or "pad"')
    filters = e.mel_filters if fusion else e.mel_filters_slaney
    return Pipeline(
        n_fft=e.fft_window_size, hop=e.hop_length, window=_window(e.fft_window_size),
        filters=torch.from_numpy(filters), tile_to=e.nb_max_samples if e.padding == "repeatpad" else None,
        pad_to=e.nb_max_samples, cut_to=e.nb_max_samples, pad=(half, half), floor=1e-10, log="db",
        steps=(Repeat(4 if fusion else 1),), double=True,
    )  # fmt: skip


def _clvp(e: Any) -> Pipeline:
    half, samples = e.n_fft // 2, e.default_audio_length * e.sampling_rate
    norms = () if e.mel_norms is None else (Affine(0.0, tuple(1 / v for v in e.mel_norms)),)
    return Pipeline(
        n_fft=e.n_fft, hop=e.hop_length, window=_window(e.n_fft), filters=_filters(e), cut_to=samples,
        pad_to=samples, pad=(half, half), floor=1e-5, log="log", steps=norms, double=True, time_last=True,
    )  # fmt: skip


def _univnet(e: Any) -> Pipeline:
    side = int((e.n_fft - e.hop_length) / 2)
    factor = float(np.log(e.compression_factor))
    steps: tuple[Step, ...] = (Affine(factor),) if factor else ()
    if e.do_normalize:
        steps += (Affine(-e.normalize_min, 2 / (e.normalize_max - e.normalize_min)), Affine(-1.0))
    if e.center:
        raise StructureError("a UnivNetFeatureExtractor with center=True pads twice; set center=False")
    return Pipeline(
        n_fft=e.n_fft, hop=e.hop_length, window=_centred(torch.from_numpy(e.window), e.n_fft),
        filters=_filters(e), cut_to=e.num_max_samples, pad=(side, side), power=1, inside=e.mel_floor,
        floor=e.compression_clip_val, log="log", steps=steps, double=True,
    )  # fmt: skip


def _nemo(e: Any, steps: tuple[Step, ...], dither: float = 0.0) -> Pipeline:
    half = e.n_fft // 2
    dtype = getattr(torch, getattr(e, "mel_filters_dtype", "float32"))
    window = torch.hann_window(e.win_length, periodic=False).to(dtype).float()
    return Pipeline(
        n_fft=e.n_fft, hop=e.hop_length, window=_centred(window, e.n_fft),
        filters=e.mel_filters.T.to(dtype).float(), dither=dither, preemphasis=e.preemphasis or 0.0,
        pad=(half, half), pad_mode="constant", floor=2.0**-24, add_floor=True, log="log", steps=steps,
        valid=(2 * half - e.n_fft, 0), double=True,
    )  # fmt: skip


def _parakeet(e: Any) -> Pipeline:
    return _nemo(e, (Normalise(correction=1, outside=1e-5), Fill()), getattr(e, "dither", 0.0))


def _nemotron(e: Any) -> Pipeline:
    return _nemo(e, (Fill(),))


def _lasr(e: Any) -> Pipeline:
    return Pipeline(
        n_fft=e.n_fft, hop=e.hop_length, window=_window(e.win_length, "hann", False), filters=_filters(e),
        floor=1e-5, log="log", valid=(-e.win_length, 1), double=True,
    )  # fmt: skip


def _gemma(e: Any, **changes: Any) -> Pipeline:
    mean, deviation = (
        None if v is None else np.asarray(v, np.float64).ravel() for v in (e.per_bin_mean, e.per_bin_stddev)
    )
    steps: tuple[Step, ...] = ()
    if mean is not None:
        steps += (Affine(tuple((-mean).tolist())),)
    if deviation is not None:
        steps += (Affine(0.0, tuple((1 / deviation).tolist())),)
    if e.preemphasis and not e.preemphasis_htk_flavor:
        raise StructureError(f"a {type(e).__name__} with preemphasis_htk_flavor=False is not known")
    options: dict[str, Any] = {
        "n_fft": e.fft_length, "hop": e.hop_length, "window": torch.from_numpy(e.window),
        "filters": _filters(e), "cut_to": 480_000, "pad_multiple": 128, "scale": e.input_scale_factor,
        "reach": 1, "frame_preemphasis": e.preemphasis, "power": 1, "floor": float(e.mel_floor), "log": "log",
        "steps": steps, "valid": (e.hop_length - 1, 0),
    }  # fmt: skip
    return Pipeline(**options | changes)


def _gemma4(e: Any) -> Pipeline:
    left = e.frame_length // 2
    plain = _gemma(e)
    valid = (left - e.frame_length + e.hop_length - 1, 0)
    return _gemma(
        e, pad=(left, 0), pad_mode="constant", add_floor=True, steps=(*plain.steps, Fill()), valid=valid
    )


def _inkling(e: Any) -> Pipeline:
    window = _centred(e.window, e.n_fft)
    return Pipeline(
        n_fft=e.n_fft, hop=e.hop_length, window=window, filters=e.mel_filters.T,
        pad=(max(e.n_fft - e.hop_length, 0), 0), pad_mode="constant", end_pad=True, power=1, inside=1e-10,
        inside_floor=True, floor=1e-10, log="log10", steps=(Fill(),), valid=(e.hop_length - 1, 0),
    )  # fmt: skip


def _phi4(e: Any) -> Pipeline:
    return Pipeline(
        n_fft=e.n_fft, hop=e.hop_length, window=_window(e.win_length, "hamming", False),
        filters=_filters(e), scale=32768.0, frame_preemphasis=e.preemphasis, floor=1.0, log="log",
        valid=(-e.win_length, 1), double=True,
    )  # fmt: skip


EXTRACTORS: dict[str, Callable[[Any], Pipeline]] = {
    "ASTFeatureExtractor": _ast,
    "ClapFeatureExtractor": _clap,
    "ClvpFeatureExtractor": _clvp,
    "CohereAsrFeatureExtractor": _parakeet,
    "Gemma3nAudioFeatureExtractor": _gemma,
    "Gemma4AudioFeatureExtractor": _gemma4,
    "InklingFeatureExtractor": _inkling,
    "LasrFeatureExtractor": _lasr,
    "MossTranscribeDiarizeFeatureExtractor": _whisper,
    "NemotronAsrStreamingFeatureExtractor": _nemotron,
    "ParakeetFeatureExtractor": _parakeet,
    "Phi4MultimodalFeatureExtractor": _phi4,
    "Qwen3ASRFeatureExtractor": _qwen,
    "SeamlessM4TFeatureExtractor": _seamless,
    "Speech2TextFeatureExtractor": _speech_to_text,
    "SpeechT5FeatureExtractor": _speecht5,
    "UnivNetFeatureExtractor": _univnet,
    "VoxtralRealtimeFeatureExtractor": _voxtral,
    "WhisperFeatureExtractor": _whisper,
}
"""Pipelines by class of extractor. SpeechT5's is that of its targets, the log-mel spectrogram."""

WAVEFORMS = ("Wav2Vec2FeatureExtractor",)


def pipeline_of(extractor: Any) -> Pipeline:
    """The pipeline of a feature extractor.

    Raises:
        StructureError: its class is not known, or it is set to do what is not.
    """
    for cls in type(extractor).__mro__:
        if cls.__name__ in EXTRACTORS:
            return EXTRACTORS[cls.__name__](extractor)
    raise StructureError(
        f"no pipeline is known for a {type(extractor).__name__}; known are {', '.join(EXTRACTORS)} and "
        f"{', '.join(WAVEFORMS)}; describe it with a ksurgeon.frontend.Pipeline"
    )


def prove(extractor: Any, frontend: Callable[[Tensor], Tensor]) -> None:
    """Compare a front end with a feature extractor on a chirp.

    Args:
        extractor: of transformers.
        frontend: from waveforms ``(batch, samples)`` to features, both in single precision.

    Raises:
        StructureError: their features differ.
    """
    time = np.arange(extractor.sampling_rate) / extractor.sampling_rate
    noise = np.random.default_rng(0).standard_normal(len(time))
    chirp = (0.3 * np.sin(2 * np.pi * (50 + 1500 * time) * time) + 0.01 * noise).astype(np.float32)
    options: dict[str, Any] = {"sampling_rate": extractor.sampling_rate, "return_tensors": "pt"}
    name = "audio_target" if hasattr(extractor, "_process_audio") else None
    given = extractor(**{name: [chirp]}, **options) if name else extractor([chirp], **options)
    expected = next(v for key, v in given.items() if key in _NAMES)
    actual = frontend(torch.from_numpy(chirp)[None]).detach()
    if actual.shape != expected.shape:
        problem = f"shape {tuple(actual.shape)}, the extractor's have {tuple(expected.shape)}"
    else:
        worst = float((actual - expected).abs().max())
        if worst <= _TOLERANCE * max(1.0, float(expected.abs().max())):
            return
        problem = f"a deviation of {worst:.1e} from the extractor's"
    raise StructureError(
        f"the features of this {type(extractor).__name__} would have {problem}: it is set to do something "
        "that its pipeline does not know; describe it with a ksurgeon.frontend.Pipeline"
    )


_NAMES = ("input_features", "input_values", "audio_input_features")
