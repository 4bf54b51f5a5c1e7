"""Networks, examples and measures of the recipe speech."""

import math
from functools import cache
from itertools import groupby, product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ksurgeon.frontend import KFrontend

_RATE, _HOP, _WINDOW = 16_000, 160, 400  # samples a second; from one frame to the next; of a frame
_EXAMPLE, _STEP = 300, 150  # frames of a training example, and from one to the next
_TINY = 1e-6
_SILENCES = ("SIL", "sil")
_CONDITIONS: dict[str, list[dict[str, float]]] = {  # of the test, by what is added to a metric's name
    "": [{}],
    "_10dB": [{"snr": 10.0}],
    "_0dB": [{"snr": 0.0}],
    "_other_rates": [{"rate": 1.06}, {"rate": 0.94}],
}


class Utterance(NamedTuple):
    """Samples from -1 to 1, and the label of each frame of 25 ms, 10 ms from one to the next."""

    wave: Tensor
    labels: Tensor


class Corpus(NamedTuple):
    """What a file of ``speech_data.py`` holds."""

    train: list[Utterance]
    test: list[Utterance]
    names: list[str]


@cache
def corpus(file: str) -> Corpus:
    """All utterances of a file."""
    with np.load(file) as held:
        samples, labels = held["samples"], held["labels"]
        lengths, tested, names = held["lengths"], held["tested"], held["names"].tolist()
    found = Corpus([], [], names)
    ends = lengths.cumsum(0)
    for (first, label), (last, end), test in zip(ends - lengths, ends, tested, strict=True):
        wave = torch.from_numpy(samples[first:last]).float() / 2**15
        count = min(_frames(len(wave)), int(end - label))
        if count > 0:
            these = torch.from_numpy(labels[label : label + count]).long()
            (found.test if test else found.train).append(Utterance(wave[: _samples(count)], these))
    return found


def training(places: dict[str, str]) -> list[tuple[Tensor, Tensor]]:
    """Overlapping pieces of three seconds of all training utterances in a random order, one after another."""
    return _pieces(corpus(places["speech"]).train)


def testing(places: dict[str, str]) -> list[tuple[Tensor, Tensor]]:
    """The same of the test utterances."""
    return _pieces(corpus(places["speech"]).test)


def unaligned(places: dict[str, str]) -> list[dict[str, Tensor]]:
    """The pieces of ``training`` as inputs of ``connectionist``: waves, and the label of each frame."""
    return [{"waves": wave, "frames": labels} for wave, labels in training(places)]


def _pieces(utterances: list[Utterance]) -> list[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(utterances), generator=torch.Generator().manual_seed(0)).tolist()
    labels = torch.cat([utterances[i].labels for i in order])
    # Each utterance's samples end where the first frame of the next begins.
    waves = torch.cat([F.pad(u.wave, (0, _HOP - _WINDOW)) for u in (utterances[i] for i in order)])
    waves = F.pad(waves, (0, _WINDOW - _HOP))
    starts = range(0, max(len(labels) - _EXAMPLE, 0) + 1, _STEP)
    return [(waves[_HOP * at : _HOP * at + _samples(_EXAMPLE)], labels[at : at + _EXAMPLE]) for at in starts]


def _frames(samples: int) -> int:
    return (samples - _WINDOW) // _HOP + 1


def _samples(frames: int) -> int:
    return _HOP * (frames - 1) + _WINDOW


class Recogniser(nn.Module):
    """A front end, and a bidirectional LSTM that tells the label of each of its frames.

    Args:
        frontend: from waves ``(batch, samples)`` to features ``(batch, frames, mels)``.
        blank: whether there is one more output, for no label.
    """

    def __init__(
        self, frontend: nn.Module, labels: int, mels: int, width: int, layers: int, blank: bool
    ) -> None:
        super().__init__()
        self.blank = labels if blank else None
        self.frontend = frontend
        # Each feature has mean 0 and spread 1 over an utterance.
        self.norm = nn.InstanceNorm1d(mels, affine=True)
        self.lstm = nn.LSTM(mels, width, layers, batch_first=True, bidirectional=True, dropout=0.2)
        self.output = nn.Linear(2 * width, labels + blank)

    def forward(self, waves: Tensor, frames: Tensor | None = None) -> Tensor:
        """Logits ``(batch, frames, labels)`` of waves ``(batch, samples)``, or ``(batch, 1, samples)``.

        ``frames``, the label of each frame, is for a loss that is given the inputs; it changes nothing here.
        """
        features = self.norm(self.frontend(waves.flatten(1)).transpose(1, 2)).transpose(1, 2)
        logits: Tensor = self.output(self.lstm(features)[0])
        return logits


def recogniser(
    frontend: str = "features",
    labels: int = 39,
    mels: int = 40,
    width: int = 96,
    layers: int = 2,
    blank: bool = False,
) -> nn.Module:
    """A recogniser of phones.

    Args:
        frontend: "features", log-mel filterbank features as Kaldi's, by a K-matrix that starts as the DFT and
            a matrix of filters; "random", the same from random numbers; "dense", with a dense matrix that
            starts as the DFT; "convolution", free filters of the waveform, or "sinc", band-pass filters
            whose edges are learned (SincNet), and the logarithm of their energies.
        labels: at least as many as the data have.
        blank: whether it tells a blank beside them, as ``connectionist`` needs it.

    Raises:
        ValueError: another front end.
    """
    made = {
        "features": _features,
        "random": _random,
        "dense": DenseDft,
        "convolution": Convolution,
        "sinc": Sinc,
    }
    if frontend not in made:
        raise ValueError(f'the front end is {", ".join(made)}, got "{frontend}"')
    return Recogniser(made[frontend](mels), labels, mels, width, layers, blank)


def _features(mels: int, **options: Any) -> KFrontend:
    """The front end that gives what Speech2Text's feature extractor gives."""
    from transformers import Speech2TextFeatureExtractor

    extractor = Speech2TextFeatureExtractor(
        feature_size=mels, num_mel_bins=mels, sampling_rate=_RATE, do_ceptral_normalize=False
    )
    found = KFrontend.from_feature_extractor(extractor, dtype=torch.float32, **options)
    assert isinstance(found, KFrontend)
    return found


def _random(mels: int) -> KFrontend:
    """The same computation from random numbers, filters as of a network's layer."""
    found = _features(mels, start="random")
    assert found.filters is not None
    with torch.no_grad():
        for factor in found.filters.factors:
            factor.normal_(std=found.filters.in_features**-0.5).abs_()
    return found


class DenseDft(nn.Module):
    """The features with a dense matrix for the DFT, window and pre-emphasis within."""

    def __init__(self, mels: int) -> None:
        super().__init__()
        exact = _features(mels)
        pipeline = exact.pipeline
        assert pipeline.filters is not None
        # What a frame of one sample becomes, for each of them: everything before the modulus is linear.
        frames = torch.eye(_WINDOW, dtype=torch.float64) * pipeline.scale
        frames = frames - frames.mean(1, keepdim=True)
        frames = frames - pipeline.frame_preemphasis * torch.cat([frames[:, :1], frames[:, :-1]], 1)
        spectrum = torch.fft.rfft(frames * pipeline.window, pipeline.n_fft)
        self.dft = nn.Parameter(torch.cat([spectrum.real, spectrum.imag], 1).T[:, None].float())
        self.filters = nn.Parameter(pipeline.filters.detach().float())
        self.floor = pipeline.floor

    def forward(self, waves: Tensor) -> Tensor:
        re, im = F.conv1d(waves[:, None], self.dft, stride=_HOP).transpose(1, 2).chunk(2, -1)
        return ((re.square() + im.square()) @ self.filters).clamp_min(self.floor).log()


class Convolution(nn.Module):
    """Two free filters for each feature, as long as a frame, and the logarithm of their energy."""

    def __init__(self, mels: int) -> None:
        super().__init__()
        self.filters = nn.Conv1d(1, 2 * mels, _WINDOW, _HOP, bias=False)

    def forward(self, waves: Tensor) -> Tensor:
        first, second = self.filters(waves[:, None]).transpose(1, 2).chunk(2, -1)
        return (first.square() + second.square() + _TINY).log()


class Sinc(nn.Module):
    """Band-pass filters whose lower edges and widths are learned (Ravanelli and Bengio, 2018), and the
    logarithm of their energy in each frame."""

    times: Tensor
    _LENGTH, _STRIDE = 251, 10

    def __init__(self, mels: int) -> None:
        super().__init__()
        edges = 700 * (10 ** (torch.linspace(_mel(30), _mel(_RATE / 2 - 100), mels + 1) / 2595) - 1)
        self.low = nn.Parameter(edges[:-1] / _RATE)
        self.width = nn.Parameter(edges.diff() / _RATE)
        half = (self._LENGTH - 1) // 2
        self.register_buffer("times", torch.arange(-half, half + 1.0))

    def forward(self, waves: Tensor) -> Tensor:
        low = self.low.abs()[:, None]
        high = (low + self.width.abs()[:, None]).clamp_max(0.5)
        window = torch.hamming_window(self._LENGTH, periodic=False, device=waves.device)
        band = 2 * high * torch.sinc(2 * high * self.times) - 2 * low * torch.sinc(2 * low * self.times)
        padded = F.pad(waves[:, None], (self._LENGTH // 2, self._LENGTH // 2))
        energy = F.conv1d(padded, (band * window)[:, None], stride=self._STRIDE).square()
        pooled = F.avg_pool1d(energy, _WINDOW // self._STRIDE, _HOP // self._STRIDE)
        frames = _frames(waves.shape[1])
        return (pooled[..., :frames] + _TINY).log().transpose(1, 2)


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def connectionist(model: Recogniser, inputs: dict[str, Tensor], progress: float) -> Tensor:
    """Connectionist temporal classification (Graves et al., 2006) of each example: only the order of its
    labels is known, and the model has a blank.

    Args:
        inputs: "waves" ``(batch, samples)`` and "frames" ``(batch, frames)``, the label of each frame.

    Returns:
        Losses ``(batch,)``, for each label of the example.
    """
    scores = model(inputs["waves"]).log_softmax(-1)
    batch, frames, _ = scores.shape
    orders = [torch.unique_consecutive(row) for row in inputs["frames"]]
    lengths = torch.tensor([len(order) for order in orders])
    losses = F.ctc_loss(
        scores.transpose(0, 1), torch.cat(orders), torch.full((batch,), frames), lengths, model.blank, "none"
    )
    return losses / lengths.to(losses)


@torch.no_grad()
def evaluate(model: Recogniser, places: dict[str, str]) -> dict[str, float]:
    """Phone errors for each phone of the test's utterances: as they are, with white noise of 10 and 0 dB, and
    6 % slower and faster, as another sampling rate makes them.

    Phones are told by a hidden Markov model in which all labels follow one another alike, as often as in
    training, or, where the model has a blank beside the labels, by its likeliest label of each frame. Silence
    is no phone.
    """
    held = corpus(places["speech"])
    changes = sum(int((u.labels.diff() != 0).sum()) for u in held.train)
    share = changes / sum(len(u.labels) for u in held.train)
    silent: set[int | None] = {number for number, name in enumerate(held.names) if name in _SILENCES}
    random, blank = torch.Generator().manual_seed(0), model.blank
    found: dict[str, float] = {}
    for condition, ways in _CONDITIONS.items():
        wrong = phones = 0
        for utterance, how in product(held.test, ways):
            scores = model(_changed(utterance.wave, random, **how)[None])[0].log_softmax(-1)
            expected = _phones(utterance.labels.tolist(), silent)
            labels = _most_likely(scores, share) if blank is None else scores.argmax(1).tolist()
            wrong += _distance(_phones(labels, silent | {blank}), expected)
            phones += len(expected)
        found[f"phone_errors{condition}"] = wrong / phones
    return found


def _changed(wave: Tensor, random: torch.Generator, snr: float | None = None, rate: float = 1.0) -> Tensor:
    """With white noise of so many decibels less than it, or so many times as long."""
    if snr is not None:
        noise = torch.randn(wave.shape, generator=random)
        wave = wave + noise * wave.square().mean().sqrt() * 10 ** (-snr / 20)
    if rate != 1:
        from scipy.signal import resample_poly

        wave = torch.from_numpy(resample_poly(wave.numpy(), round(100 * rate), 100)).float()
    return wave


def _most_likely(scores: Tensor, share: float) -> list[int]:
    """The sequence of labels of greatest likelihood (Viterbi), where a label changes with probability
    ``share``.

    Args:
        scores: log-probabilities ``(frames, labels)``.
    """
    labels = scores.shape[1]
    stay, change = math.log(1 - share), math.log(share / (labels - 1))
    best, came = scores[0], []
    for now in scores[1:]:
        top, at = best.max(0)
        stays = best + stay >= top + change
        came.append(torch.where(stays, torch.arange(labels), at))
        best = torch.where(stays, best + stay, top + change) + now
    path = [int(best.argmax())]
    for before in reversed(came):
        path.append(int(before[path[-1]]))
    return path[::-1]


def _phones(labels: list[int], silent: set[int | None]) -> list[int]:
    return [label for label, _ in groupby(labels) if label not in silent]


def _distance(ours: list[int], theirs: list[int]) -> int:
    """Insertions, deletions and substitutions that make one of the other."""
    row = list(range(len(theirs) + 1))
    for at, one in enumerate(ours, 1):
        before, row[0] = row[0], at
        for other, expected in enumerate(theirs, 1):
            before, row[other] = (
                row[other],
                min(before + (one != expected), row[other] + 1, row[other - 1] + 1),
            )
    return row[-1]
