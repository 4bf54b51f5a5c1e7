"""The front ends of torchaudio, nnAudio, torchlibrosa and speechbrain as modules of ours."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.errors import StructureError
from ksurgeon.frontend.filters import KFilters
from ksurgeon.frontend.frontend import KFrontend
from ksurgeon.frontend.pipeline import Pipeline
from ksurgeon.frontend.steps import Range, Step

__all__ = ["known_name", "replacement_of"]

_TOLERANCE = 1e-4


def known_name(module: nn.Module) -> str | None:
    """Library and class of a module that has a replacement here; None for any other."""
    cls = type(module)
    name = f"{cls.__module__.partition('.')[0]}.{cls.__name__}"
    return name if name in _MODULES else None


def replacement_of(module: nn.Module, **options: Any) -> KFrontend | KFilters:
    """The learnable module that does the same, compared with the original on noise.

    Args:
        module: one that ``known_name`` knows.
        options: ``radices``, ``symmetric`` and ``start``, as of ``KFrontend``.

    Raises:
        StructureError: it is set to do what is not known here; the message says what.
    """
    name = known_name(module)
    if name is None:
        raise StructureError(f"no front end is known for a {type(module).__name__}")
    tensors = [*module.parameters(), *module.buffers()]
    place: dict[str, Any] = {"device": tensors[0].device, "dtype": tensors[0].dtype} if tensors else {}
    made = _MODULES[name](module)
    exact = _build(made, place, {})
    _prove(module, exact)
    new = _build(made, place, options) if options else exact
    return new.train(module.training)


_Made = Pipeline | tuple[Tensor, dict[str, Any]]


def _build(made: _Made, place: dict[str, Any], options: dict[str, Any]) -> KFrontend | KFilters:
    if isinstance(made, Pipeline):
        return KFrontend(made, **place, **options)
    filters, rest = made
    return KFilters(filters, **rest, **place)


@torch.no_grad()
def _prove(module: nn.Module, new: KFrontend | KFilters) -> None:
    generator = torch.Generator().manual_seed(0)
    if isinstance(new, KFrontend):
        given = torch.randn(2, 4 * new.pipeline.n_fft, generator=generator)
    else:
        shape = (2, 9, new.filters.in_features)
        given = torch.randn(shape, generator=generator).square()
        given = given if new.dim == -1 else given.transpose(-1, -2)
    parameter = next(new.parameters())
    given = given.to(parameter)
    plain = copy.deepcopy(module).eval()
    expected, actual = plain(given), new(given)
    if not isinstance(expected, Tensor) or expected.shape != actual.shape:
        raise StructureError("it gives features of another shape than its settings tell")
    worst = float((actual - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
    if not worst <= _TOLERANCE:
        raise StructureError(f"its features differ by {worst:.0e} from what its settings tell")


def _torchaudio_spectrogram(m: Any) -> Pipeline:
    if not m.onesided:
        raise StructureError("a two-sided spectrum")
    window = _centred(m.window, m.n_fft)
    if m.normalized in (True, "window"):
        window = window / m.window.square().sum().sqrt()
    elif m.normalized == "frame_length":
        window = window / math.sqrt(m.n_fft)
    side = m.n_fft // 2 if m.center else 0
    if m.pad and m.center and m.pad_mode != "constant":
        raise StructureError(f"padding twice, with zeros and with {m.pad_mode}")
    return Pipeline(
        n_fft=m.n_fft, hop=m.hop_length, window=window, pad=(side + m.pad, side + m.pad),
        pad_mode=m.pad_mode if m.center else "constant", power=m.power, time_last=True,
    )  # fmt: skip


def _changed(pipeline: Pipeline, **changes: Any) -> Pipeline:
    return Pipeline(**{**vars(pipeline), **changes})


def _torchaudio_mel(m: Any) -> Pipeline:
    return _changed(_torchaudio_spectrogram(m.spectrogram), filters=m.mel_scale.fb)


def _torchaudio_mfcc(m: Any) -> Pipeline:
    steps: tuple[Step, ...] = () if m.log_mels else (Range(m.top_db, over="channels"),)
    logarithm: dict[str, Any] = (
        {"log": "log", "floor": 1e-6, "add_floor": True} if m.log_mels else {"log": "db", "floor": 1e-10}
    )
    cepstrum = (m.n_mfcc, m.norm == "ortho")
    return _changed(_torchaudio_mel(m.MelSpectrogram), steps=steps, cepstrum=cepstrum, **logarithm)


def _torchaudio_mel_scale(m: Any) -> _Made:
    return m.fb, {"dim": -2}


def _nnaudio_stft(m: Any) -> Pipeline:
    if m.output_format not in ("Magnitude", "Complex") or m.freq_bins not in (None, m.n_fft // 2 + 1):
        raise StructureError(f"output_format={m.output_format}, freq_bins={m.freq_bins}")
    side = m.n_fft // 2 if m.center else 0
    complexes = m.output_format == "Complex"
    return Pipeline(
        n_fft=m.n_fft, hop=m.stride, window=m.window_mask.flatten(), pad=(side, side), pad_mode=m.pad_mode,
        power=None if complexes else 1.0, inside=1e-8 if m.trainable and not complexes else 0.0,
        layout="batch", parts=complexes, time_last=True,
    )  # fmt: skip


def _nnaudio_mel(m: Any) -> Pipeline:
    return _changed(_nnaudio_stft(m.stft), power=float(m.power), filters=m.mel_basis.T)


def _torchlibrosa_spectrogram(m: Any) -> Pipeline:
    stft = m.stft
    side = stft.n_fft // 2 if stft.center else 0
    window = stft.conv_real.weight[0, 0].detach()  # the real part of frequency 0 is the window itself
    return Pipeline(
        n_fft=stft.n_fft, hop=stft.hop_length, window=window, pad=(side, side), pad_mode=stft.pad_mode,
        power=float(m.power), layout="channel",
    )  # fmt: skip


def _torchlibrosa_filters(m: Any) -> _Made:
    if not m.is_log:
        return m.melW, {}
    steps = () if m.top_db is None else (Range(float(m.top_db), over="all"),)
    shift = -10 * math.log10(max(m.amin, m.ref))
    return m.melW, {"decibels": 10.0, "floor": m.amin, "shift": shift, "steps": steps}


def _speechbrain_stft(m: Any) -> Pipeline:
    if not m.onesided:
        raise StructureError("a two-sided spectrum")
    side = m.n_fft // 2 if m.center else 0
    window = _centred(m.window, m.n_fft) / (math.sqrt(m.n_fft) if m.normalized_stft else 1)
    return Pipeline(
        n_fft=m.n_fft, hop=m.hop_length, window=window, pad=(side, side), pad_mode=m.pad_mode, power=None,
        parts=True,
    )  # fmt: skip


def _speechbrain_filters(m: Any) -> _Made:
    if not m.freeze or m.param_rand_factor:
        raise StructureError("filters that move in training")
    plain = copy.deepcopy(m).eval()
    plain.log_mel = False
    filters = plain(torch.eye(m.n_stft)[None])[0]
    if not m.log_mel:
        return filters, {}
    options = {"decibels": float(m.multiplier), "floor": m.amin, "steps": (Range(float(m.top_db)),)}
    return filters, options | {"shift": -m.multiplier * m.db_multiplier}


def _centred(window: Tensor, size: int) -> Tensor:
    left = (size - len(window)) // 2
    return nn.functional.pad(window, (left, size - len(window) - left))


_MODULES: dict[str, Callable[[Any], _Made]] = {
    "nnAudio.MelSpectrogram": _nnaudio_mel,
    "nnAudio.STFT": _nnaudio_stft,
    "speechbrain.Filterbank": _speechbrain_filters,
    "speechbrain.STFT": _speechbrain_stft,
    "torchaudio.MFCC": _torchaudio_mfcc,
    "torchaudio.MelScale": _torchaudio_mel_scale,
    "torchaudio.MelSpectrogram": _torchaudio_mel,
    "torchaudio.Spectrogram": _torchaudio_spectrogram,
    "torchlibrosa.LogmelFilterBank": _torchlibrosa_filters,
    "torchlibrosa.Spectrogram": _torchlibrosa_spectrogram,
}
