"""Front ends for audio, original and replacement in turns: ``python -m benchmarks.frontends --json FILE``.

Needs the extra ``audio``, and a torchaudio that goes with the installed PyTorch. Every row tells the largest
difference from the original's features, as a share of the largest feature, and how much faster ours is:
0.5 means that it takes twice as long, which is the limit.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.results import add, cpu_setting, show
from benchmarks.turns import compared, measure
from ksurgeon import convert
from ksurgeon.frontend import KFrontend
from ksurgeon.frontend.modules import replacement_of

__all__ = ["extractors", "layers", "main", "row"]

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


def extractors() -> Iterator[tuple[str, Callable[[], Tensor], Callable[[], Tensor]]]:
    """Feature extractors of transformers in numpy, and the modules of ours; ten seconds of 16 kHz."""
    from transformers import ASTFeatureExtractor, WhisperFeatureExtractor

    clip = torch.randn(10 * _RATE) * 0.1
    for extractor in (WhisperFeatureExtractor(), ASTFeatureExtractor()):
        frontend = KFrontend.from_feature_extractor(extractor)
        samples = clip.numpy()

        def original(extractor: Any = extractor, samples: Any = samples) -> Tensor:
            features = extractor(samples, sampling_rate=_RATE, return_tensors="pt")
            return next(iter(features.values()))  # type: ignore[no-any-return]

        def ours(frontend: Any = frontend) -> Tensor:
            return frontend(clip[None])  # type: ignore[no-any-return]

        yield type(extractor).__name__, original, ours


def fnet() -> tuple[str, Callable[[], Tensor], Callable[[], Tensor]]:
    """The Fourier transform that FNet mixes with in the place of attention, 128 tokens of 768."""
    from transformers import FNetConfig, FNetModel
    from transformers.models.fnet.modeling_fnet import FNetBasicFourierTransform

    tokens, model = torch.arange(128)[None], FNetModel(FNetConfig(num_hidden_layers=1)).eval()
    plain = FNetBasicFourierTransform(model.config)
    convert(model, "transform", {"input_ids": tokens})
    mixing = next(m for m in model.modules() if isinstance(m, FNetBasicFourierTransform))
    x = torch.randn(1, 128, 768)
    return "FNet's Fourier transform", lambda: plain(x)[0], lambda: mixing(x)[0]


def row(
    part: str, case: str, original: Callable[[], Tensor], ours: Callable[[], Tensor], seconds: float
) -> dict[str, Any]:
    """Measure one front end in turns with its original, and how far its features are off."""
    with torch.inference_mode():
        wanted, given = original(), ours()
        error = float((given - wanted).abs().max() / wanted.abs().max())
        times = measure({"ours": ours, ORIGINAL: original}, seconds)
    result = compared(part, f"{case}, off by {error:.0e}", len(wanted), times, LIMIT)
    return result | {"error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the rows to this file")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each candidate (default 1)")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for case, module, x in layers():
        module.eval()
        new = replacement_of(module)
        rows.append(row("module", case, lambda m=module, x=x: m(x), lambda m=new, x=x: m(x), options.seconds))  # type: ignore[misc]
    for case, original, ours in (*extractors(), fnet()):
        rows.append(row("in a model of transformers", case, original, ours, options.seconds))
    show(TITLE, rows)
    if options.json:
        add(options.json, TITLE, cpu_setting(torch.get_num_threads()), rows)


if __name__ == "__main__":
    main()
