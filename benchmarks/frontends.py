"""Front ends for audio, original and replacement in turns: ``python -m benchmarks.frontends --json FILE``.

Needs the extra ``audio``, and a torchaudio that goes with the installed PyTorch. Ours is measured as it
starts, where the transform's factors are those of the DFT and ``torch.fft`` does the same, and with factors
that were moved as training moves them; those with the symmetry of real input, too. Features and gradients
together are of the waveform for the original, which learns nothing, and of all parameters for ours and for
nnAudio's dense one. Every row tells the largest difference from the original's features,
as a share of the largest feature, and how much faster ours is: 0.5 means that it takes twice as long, which
is the limit. With one thread (``OMP_NUM_THREADS=1``) times are those of the processor.
"""

import argparse
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.results import add, cpu_setting, show
from benchmarks.turns import Call, compared, measure
from ksurgeon import convert
from ksurgeon.frontend import KFrontend
from ksurgeon.frontend.modules import replacement_of

__all__ = ["extractors", "fnet", "layers", "main", "measured", "trained"]

TITLE = "Audio front ends"
ORIGINAL = "the original"
LIMIT = {ORIGINAL: 0.5}
_RATE = 16000


def layers() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Modules of the four libraries, with what they are called on: a second of 16 kHz, four clips."""
    import torchaudio
    import torchlibrosa
    from nnAudio import features
    from speechbrain.processing import features as speechbrain

    clips = torch.randn(4, _RATE)
    audio = torchaudio.transforms
    yield "torchaudio Spectrogram", audio.Spectrogram(), clips
    yield "torchaudio MelSpectrogram", audio.MelSpectrogram(n_mels=64), clips
    yield "torchaudio MFCC", audio.MFCC(melkwargs={"n_mels": 64}), clips
    yield "nnAudio STFT", features.STFT(n_fft=512, output_format="Magnitude", verbose=False), clips
    yield "nnAudio MelSpectrogram", features.MelSpectrogram(n_fft=1024, verbose=False), clips
    yield "torchlibrosa Spectrogram", torchlibrosa.Spectrogram(n_fft=1024, hop_length=320), clips
    power = torch.randn(4, 1, 100, 201).square()
    yield "torchlibrosa LogmelFilterBank", torchlibrosa.LogmelFilterBank(n_fft=400, n_mels=40), power
    yield "speechbrain STFT", speechbrain.STFT(sample_rate=_RATE), clips
    yield "speechbrain Filterbank", speechbrain.Filterbank(), torch.randn(4, 100, 201).square()


def extractors() -> Iterator[tuple[str, Callable[[], Tensor], list[nn.Module], Tensor]]:
    """Feature extractors of transformers in numpy, and the modules of ours; ten seconds of 16 kHz."""
    from transformers import ASTFeatureExtractor, WhisperFeatureExtractor

    clip = torch.randn(10 * _RATE) * 0.1
    for extractor in (WhisperFeatureExtractor(), ASTFeatureExtractor()):
        samples = clip.numpy()

        def original(extractor: Any = extractor, samples: Any = samples) -> Tensor:
            features = extractor(samples, sampling_rate=_RATE, return_tensors="pt")
            return next(iter(features.values()))  # type: ignore[no-any-return]

        made = [KFrontend.from_feature_extractor(extractor, symmetric=way) for way in (False, True)]
        yield type(extractor).__name__, original, made, clip[None]


def fnet() -> tuple[str, Callable[[], Tensor], list[nn.Module], Tensor]:
    """The Fourier transform that FNet mixes with in the place of attention, 128 tokens of 768."""
    from transformers import FNetConfig, FNetModel
    from transformers.models.fnet.modeling_fnet import FNetBasicFourierTransform

    tokens, model = torch.arange(128)[None], FNetModel(FNetConfig(num_hidden_layers=1)).eval()
    plain = FNetBasicFourierTransform(model.config)
    convert(model, "transform", {"input_ids": tokens})
    mixing = next(m for m in model.modules() if isinstance(m, FNetBasicFourierTransform))
    x = torch.randn(1, 128, 768)
    return "FNet's Fourier transform", lambda: plain(x)[0], [mixing], x


def measured(
    part: str, case: str, original: Callable[[], Tensor], ours: list[nn.Module], x: Tensor, seconds: float
) -> list[dict[str, Any]]:
    """Measure one front end in turns with its original, and how far its features are off.

    Args:
        ours: ours, and possibly that with the symmetry of real input.
    """
    start, names = "as it starts", ("after training", "after training, symmetric")
    plain = ours[0]
    trained_ones = dict(zip(names, map(_moved, ours), strict=False))
    with torch.inference_mode():
        wanted = original()
        error = float((_tensor(plain(x)) - wanted).abs().max() / wanted.abs().max())
        calls: dict[str, Call] = {start: lambda: plain(x), ORIGINAL: original}
        calls |= {name: partial(made, x) for name, made in trained_ones.items()}
        times = measure(calls, seconds, clock=_clock())
    rows = []
    for name in calls:
        if name != ORIGINAL:
            told = f"{case}, off by {error:.0e}" if name == start else f"{case}, {name}"
            pair = {name: times[name], ORIGINAL: times[ORIGINAL]}
            rows.append(compared(part, told, len(wanted), pair, LIMIT))
    rows[0]["error"] = error
    return rows


def trained(seconds: float) -> Iterator[dict[str, Any]]:
    """Features and gradients: ours, torchaudio's, and nnAudio's, whose transform is a dense matrix."""
    import torchaudio
    from nnAudio import features

    clips = torch.randn(4, _RATE)
    original = torchaudio.transforms.MelSpectrogram(n_mels=64)
    dense = features.MelSpectrogram(
        _RATE, 400, n_mels=64, hop_length=200, trainable_STFT=True, trainable_mel=True, verbose=False
    )
    ours = "features and gradients"
    for told, symmetric in (("", False), (", symmetric", True)):
        made = _moved(replacement_of(original, symmetric=symmetric))
        calls: dict[str, Call] = {
            ours: partial(_step, made, clips),
            ORIGINAL: partial(_step, original, clips.clone().requires_grad_()),
            "nnAudio, learned": partial(_step, dense, clips),
        }
        times = measure(calls, seconds, clock=_clock())
        yield compared(
            ours, f"torchaudio MelSpectrogram, after training{told}", len(clips), times, {ORIGINAL: 1.0}
        )


def _step(module: nn.Module, x: Tensor) -> None:
    module(x).sum().backward()


def _moved(module: nn.Module) -> nn.Module:
    moved = deepcopy(module)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    return moved


def _clock() -> Callable[[], float]:
    return process_time if torch.get_num_threads() == 1 else perf_counter


def _tensor(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the rows to this file")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each candidate (default 1)")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for case, module, x in layers():
        original = partial(module.eval(), x)
        ours = [replacement_of(module)]
        if isinstance(ours[0], KFrontend):
            ours.append(replacement_of(module, symmetric=True))
        rows += measured("module", case, original, ours, x, options.seconds)
    rows += trained(options.seconds)
    for case, original, made, x in (*extractors(), fnet()):
        rows += measured("in a model of transformers", case, original, made, x, options.seconds)
    show(TITLE, rows)
    if options.json:
        add(options.json, TITLE, cpu_setting(torch.get_num_threads()), rows)


if __name__ == "__main__":
    main()
