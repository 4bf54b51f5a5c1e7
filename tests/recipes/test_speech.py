"""The recipe speech: what its data hold, its front ends, its measures, and a quick run."""

import json
from itertools import pairwise, product
from unittest.mock import patch

import numpy as np
import pytest
import soundfile
import torch

from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function
from ksurgeon.recipes.schema import load_recipe
from tests.cli.conftest import run
from tests.near import near

__all__ = ["run"]

RECIPE = load_recipe("speech")


def function(name):
    return find_function(name, RecipeError, RECIPE.folder)


SPEECH = function("speech.py:training").__globals__
DATA = function("speech_data.py:prompts").__globals__


def tones(count, seed=0, labels=("SIL", "AA", "IY")):
    """Utterances of tones, of a frequency for each label and nothing for the first, 10 to 30 frames each."""
    random = np.random.default_rng(seed)
    found = {}
    for number in range(count):
        names, waves = [], []
        for label in [0, *random.integers(1, len(labels), 4), 0]:
            frames = int(random.integers(10, 30))
            time = np.arange(160 * frames) / 16_000
            waves.append(0.5 * np.sin(2 * np.pi * 700 * label * time) * (label > 0))
            names += [labels[label]] * frames
        wave = np.concatenate(waves) + 0.01 * random.standard_normal(160 * len(names))
        found[f"utterance {number}"] = (wave * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16), names
    return found


@pytest.fixture
def places(tmp_path):
    return {"speech": str(DATA["_written"](tmp_path / "speech.npz", lambda left_out: tones(40))["speech"])}


def test_pieces_are_what_was_said(places):
    """Each piece has as many frames as labels, and a tone where its label says one is."""
    pieces = function("speech.py:training")(places)
    assert len(pieces) > 4
    corpus = SPEECH["corpus"](places["speech"])
    assert corpus.names == ["AA", "IY", "SIL"] and corpus.train and corpus.test
    for wave, labels in pieces:
        frames = wave.unfold(0, 400, 160)
        assert len(frames) == len(labels) == 300
        loud = frames[:, 120:280].square().mean(1) > 0.01
        settled = (labels[:-2] == labels[1:-1]) & (labels[1:-1] == labels[2:])
        assert (loud[1:-1] == (labels[1:-1] != 2))[settled].float().mean() > 0.97


def test_timit_as_it_unpacks(tmp_path, monkeypatch, caplog):
    """Stereo and other rates are converted; damaged, silent, truncated and unlabelled files are counted."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    noise = 0.1 * random.standard_normal((16_000, 2))
    phones = "0 4000 h#\n4000 8000 ix\n8000 9600 q\n9600 16000 s\n"

    def write(name, samples, rate=16_000, labels=phones):
        file = tmp_path / "TIMIT" / f"{name}.WAV"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, samples, rate, format="NIST" if samples.ndim == 1 else "WAV")
        if labels:
            file.with_suffix(".PHN").write_text(labels)
        return file

    write("TRAIN/DR1/FAAA0/SI1", noise[:, 0])
    write("TRAIN/DR1/FAAA0/SX2", noise)
    write("TRAIN/DR1/FAAA0/SA1", noise[:, 0])
    write("TEST/DR1/MBBB0/SX3", noise[::2, 0], 8_000)
    write("TEST/DR1/MBBB0/SX4", 0 * noise[:, 0])
    write("TEST/DR1/MBBB0/SX5", noise[:9_000, 0])
    write("TEST/DR1/MBBB0/SX6", noise[:, 0], labels=None)
    write("TEST/DR1/MBBB0/SX7", noise[:, 0]).write_bytes(b"NIST_1A\n")
    file = function("speech_data.py:timit")(tmp_path)["speech"]
    with np.load(file) as held:
        assert held["names"].tolist() == ["ih", "s", "sil"]
        assert held["tested"].tolist() == [True, False, False]
        assert held["lengths"].tolist() == [[16_000, 100]] * 3
        assert held["labels"][:100].tolist() == [2] * 25 + [0] * 35 + [1] * 40
        mono = held["samples"][32_000:].astype(float) / 2**15
        assert np.abs(mono - noise.mean(1)).max() < 1e-3
        assert str(held["left_out"]) == "1 damaged, 1 silent, 2 without labels, or shorter than they say"
    assert "left out of 7 utterances: 1 damaged" in caplog.text


def test_speech_commands_as_they_unpack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "speech_commands_v0.02"
    random = np.random.default_rng(0)
    for name in ("yes/a", "yes/b", "no/a", "_background_noise_/hum"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / f"{name}.wav", 0.1 * random.standard_normal(16_000), 16_000)
    (root / "testing_list.txt").write_text("yes/b.wav\n")
    with np.load(function("speech_data.py:speech_commands")(tmp_path)["speech"]) as held:
        assert held["names"].tolist() == ["no", "yes"]
        assert held["tested"].tolist() == [False, False, True]
        assert held["labels"].tolist() == [0] * 100 + [1] * 200


@pytest.mark.parametrize("name", ["timit", "speech_commands"])
def test_data_that_are_not_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"there is no folder .* in .*unpack it there"):
        function(f"speech_data.py:{name}")(tmp_path)


def test_nothing_is_written_where_nothing_is_left(tmp_path):
    with pytest.raises(RecipeError, match="no utterance is left; left out were 2 damaged"):
        DATA["_written"](tmp_path / "a.npz", lambda left_out: left_out.update({"damaged": 2}) or {})
    assert not list(tmp_path.iterdir())


def test_words_as_the_dictionary_has_them():
    assert DATA["_words"]("Press 1, then twenty-two") == ["press", "one", "then", "twenty", "two"]
    assert DATA["_words"]("in 1998") == DATA["_words"]("[beep] hello") == []


@pytest.mark.parametrize("frontend", ["features", "random", "dense", "convolution", "sinc"])
def test_front_ends(frontend):
    """All give as many frames; derivatives reach the waves and every parameter."""
    torch.manual_seed(0)
    model = function("speech.py:recogniser")(frontend, labels=5, mels=8, width=4)
    waves = (0.1 * torch.randn(2, 48_240)).requires_grad_()
    logits = model(waves)
    assert logits.shape == (2, 300, 5)
    assert near(model.eval()(waves[:, None]), model(waves))
    model.train()
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (waves, *model.parameters()))
    assert all(p.grad.any() for p in model.frontend.parameters())


def test_another_front_end():
    with pytest.raises(ValueError, match=r'is features, random.*got "wavelet"'):
        function("speech.py:recogniser")("wavelet")


def test_features_are_those_of_the_extractor():
    """The K front end, and the dense one, give what the feature extractor of transformers gives."""
    from transformers import Speech2TextFeatureExtractor

    extractor = Speech2TextFeatureExtractor(feature_size=40, num_mel_bins=40, do_ceptral_normalize=False)
    wave = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(np.asarray(extractor(wave.numpy(), sampling_rate=16_000)["input_features"]))
    for frontend in ("features", "dense"):
        found = function("speech.py:recogniser")(frontend).frontend(wave[None])
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 2e-3  # of logarithms around 10


def test_the_most_likely_labels():
    """Against all sequences of labels."""
    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).mul(2).log_softmax(-1)
    share = 0.2

    def likelihood(path):
        kept = sum(a == b for a, b in pairwise(path))
        moves = kept * np.log(1 - share) + (len(path) - 1 - kept) * np.log(share / 2)
        return float(scores[range(6), path].sum()) + moves

    best = max(product(range(3), repeat=6), key=likelihood)
    assert SPEECH["_most_likely"](scores, share) == list(best)
    assert SPEECH["_most_likely"](scores, 1e-9) == [int(scores.sum(0).argmax())] * 6


class Told(torch.nn.Module):
    """Logits of waves as a function gives them."""

    def __init__(self, logits, blank=None):
        super().__init__()
        self.logits, self.blank = logits, blank

    def forward(self, waves):
        return self.logits(waves)


def test_the_loss_of_unaligned_phones():
    """Against the likelihood of all sequences that tell the same phones, blanks among them."""
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2))
    frames = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    model = Told(lambda waves: logits, 2)
    losses = function("speech.py:connectionist")(model, {"waves": None, "frames": frames}, 0.5)
    for scores, phones, loss in zip(logits.log_softmax(-1), ([0, 1], [1]), losses, strict=True):
        told = [p for p in product(range(3), repeat=5) if SPEECH["_phones"](list(p), {2}) == phones]
        likelihoods = torch.stack([scores[range(5), list(path)].sum() for path in told])
        assert float(loss) == pytest.approx(-float(likelihoods.logsumexp(0)) / len(phones), rel=1e-5)


@pytest.mark.parametrize("outputs", [3, 9])
def test_a_blank_is_no_phone(outputs, places):
    """Also where the recogniser has more labels than the data."""
    corpus = SPEECH["corpus"](places["speech"])
    labels = {float(u.wave.sum()): u.labels for u in corpus.test}

    def logits(waves):
        told = labels[float(waves[0].sum())].clone()
        told[told.diff(prepend=told[:1]) != 0] = outputs  # the first frame of each phone
        return 10 * torch.nn.functional.one_hot(told, outputs + 1).float()[None]

    with patch.dict(SPEECH, {"_CONDITIONS": {"": [{}]}}):
        assert SPEECH["evaluate"](Told(logits, outputs), places) == {"phone_errors": 0.0}


def test_more_labels_than_the_data_have_are_no_blank(places):
    """Phones are those of the likeliest sequence, not of each frame."""
    corpus = SPEECH["corpus"](places["speech"])
    labels = {float(u.wave.sum()): u.labels for u in corpus.test}

    def logits(waves):
        told = labels[float(waves[0].sum())].clone()
        told[5::7] = 4  # a frame of something else now and then
        return torch.nn.functional.one_hot(told, 5).float()[None]

    with patch.dict(SPEECH, {"_CONDITIONS": {"": [{}]}}):
        assert SPEECH["evaluate"](Told(logits), places) == {"phone_errors": 0.0}


def test_how_many_phones_are_wrong():
    distance = SPEECH["_distance"]
    assert distance([], [1, 2]) == distance([1, 2], []) == 2
    assert distance([1, 2, 3], [1, 2, 3]) == 0
    assert distance([1, 9, 3, 4], [1, 2, 3]) == 2
    assert distance([2, 3], [1, 2, 3]) == 1
    assert SPEECH["_phones"]([0, 0, 1, 1, 0, 1, 2], {0}) == [1, 1, 2]


def test_what_is_heard_is_changed_as_it_says():
    """Noise has the power that it says; another rate makes all frequencies another."""
    wave = torch.sin(torch.arange(16_000) * 2 * torch.pi / 16)
    noisy = SPEECH["_changed"](wave, torch.Generator().manual_seed(0), snr=10.0)
    assert float((noisy - wave).square().mean() / wave.square().mean()) == pytest.approx(0.1, rel=0.1)
    slower = SPEECH["_changed"](wave, torch.Generator(), rate=1.25)
    assert len(slower) == 20_000
    assert int(torch.fft.rfft(slower).abs().argmax()) == pytest.approx(1000, abs=1)
    assert SPEECH["_changed"](wave, torch.Generator()) is wave


def test_a_quick_run(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "cache" / "ksurgeon" / "recipes" / "speech"
    place.mkdir(parents=True)
    labels = [f"P{number}" for number in range(38)]
    DATA["_written"](place / "prompts.npz", lambda left_out: tones(60, labels=("SIL", *labels)))
    command = ("run", "speech", "--quick", "--jobs", 1, "--device", "cpu", "--set", "steps=2")
    ran = run(*command, "--yes")
    assert ran.status == 0, ran.err
    results = json.loads((tmp_path / "runs" / "speech-quick" / "results.json").read_text())
    assert results["quick"] and list(results["variants"]) == list(RECIPE.quick.only)
    told = results["variants"]["k-exact"]["seeds"]["0"]["after_training"]
    assert {"accuracy", "phone_errors", "phone_errors_0dB", "phone_errors_other_rates"} <= set(told)
