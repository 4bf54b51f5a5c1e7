"""Front ends for audio, original and replacement in turns: ``python -m benchmarks.frontends --json FILE``.

Needs the extra ``audio``, and a torchaudio that goes with the installed PyTorch. Ours is measured as it
starts, where the transform's factors are those of the DFT and ``torch.fft`` does the same, and with factors
that were moved as training moves them. Every row tells the largest difference from the original's features,
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

__all__ = ["extractors", "fnet", "layers", "main", "measured"]

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


def extractors() -> Iterator[tuple[str, Callable[[], Tensor], nn.Module, Tensor]]:
    """Feature extractors of transformers in numpy, and the modules of ours; ten seconds of 16 kHz."""
    from transformers import ASTFeatureExtractor, WhisperFeatureExtractor

    clip = torch.randn(10 * _RATE) * 0.1
    for extractor in (WhisperFeatureExtractor(), ASTFeatureExtractor()):
        samples = clip.numpy()

        def original(extractor: Any = extractor, samples: Any = samples) -> Tensor:
            features = extractor(samples, sampling_rate=_RATE, return_tensors="pt")
            return next(iter(features.values()))  # type: ignore[no-any-return]

        yield type(extractor).__name__, original, KFrontend.from_feature_extractor(extractor), clip[None]


def fnet() -> tuple[str, Callable[[], Tensor], nn.Module, Tensor]:
    """The Fourier transform that FNet mixes with in the place of attention, 128 tokens of 768."""
    from transformers import FNetConfig, FNetModel
    from transformers.models.fnet.modeling_fnet import FNetBasicFourierTransform

    tokens, model = torch.arange(128)[None], FNetModel(FNetConfig(num_hidden_layers=1)).eval()
    plain = FNetBasicFourierTransform(model.config)
    convert(model, "transform", {"input_ids": tokens})
    mixing = next(m for m in model.modules() if isinstance(m, FNetBasicFourierTransform))
    x = torch.randn(1, 128, 768)
    return "FNet's Fourier transform", lambda: plain(x)[0], mixing, x


def measured(
    part: str, case: str, original: Callable[[], Tensor], ours: nn.Module, x: Tensor, seconds: float
) -> list[dict[str, Any]]:
    """Measure one front end in turns with its original, and how far its features are off."""
    moved = deepcopy(ours)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    exact, after = "as it starts", "after training"
    with torch.inference_mode():
        wanted = original()
        error = float((_tensor(ours(x)) - wanted).abs().max() / wanted.abs().max())
        calls: dict[str, Call] = {exact: lambda: ours(x), after: lambda: moved(x), ORIGINAL: original}
        times = measure(calls, seconds, clock=process_time if torch.get_num_threads() == 1 else perf_counter)
    rows = []
    for name in (exact, after):
        pair = {name: times[name], ORIGINAL: times[ORIGINAL]}
        told = f"{case}, off by {error:.0e}" if name == exact else f"{case}, {name}"
        rows.append(compared(part, told, len(wanted), pair, LIMIT))
    rows[0]["error"] = error
    return rows


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
        rows += measured("module", case, original, replacement_of(module), x, options.seconds)
    for case, original, ours, x in (*extractors(), fnet()):
        rows += measured("in a model of transformers", case, original, ours, x, options.seconds)
    show(TITLE, rows)
    if options.json:
        add(options.json, TITLE, cpu_setting(torch.get_num_threads()), rows)


if __name__ == "__main__":
    main()
