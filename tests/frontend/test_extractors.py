import inspect
import logging

import numpy as np
import pytest
import torch
import transformers
from transformers.utils import is_speech_available

from ksurgeon.errors import StructureError
from ksurgeon.frontend import KFrontend, KWaveform
from ksurgeon.frontend.extractors import EXTRACTORS
from ksurgeon.kmatrix.structures import Kaleidoscope
from tests.near import near

# What these compute in single precision themselves is known to no more than 1e-4 of their largest feature.
SINGLE = ("CohereAsr", "Gemma3nAudio", "NemotronAsrStreaming", "Parakeet", "Phi4Multimodal")
# Where torchaudio is there, these leave it to its single precision, which loses more in quiet bins.
KALDI = ("AST", "Speech2Text") if is_speech_available() else ()
# Padded to a fixed length by default, so that padding="longest" would be a deviation of its own.
FIXED = ("Whisper", "Clvp", "Qwen3ASR", "MossTranscribeDiarize", "AST", "Clap", "CohereAsr")
# These give no mask, one of samples, or one that is shorter than their features.
NO_MASK = ("AST", "Clap", "Clvp", "UnivNet", "VoxtralRealtime")
FEATURES = ("input_features", "input_values", "audio_input_features")
MASKS = ("input_features_mask", "audio_attention_mask", "attention_mask")


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def make(name, **options):
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    try:
        return getattr(transformers, name)(**options)
    except ImportError as error:  # some versions ask for librosa
        pytest.skip(str(error).strip()[:80])


def speech(seconds, rate, seed):
    """Chirps that come and go, over noise."""
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(time))
    voiced = np.sin(2 * np.pi * 440 * time) * (time % 0.5 < 0.3)
    return (0.3 * np.sin(2 * np.pi * (80 + 1200 * time) * time) + 0.1 * voiced + 0.02 * noise).astype(
        np.float32
    )


def extract(extractor, clips):
    short = type(extractor).__name__.removesuffix("FeatureExtractor")
    options = {"sampling_rate": extractor.sampling_rate, "return_tensors": "pt"}
    if short not in FIXED:
        options["padding"] = "longest"
    if short not in NO_MASK and "return_attention_mask" in inspect.signature(extractor.__call__).parameters:
        options["return_attention_mask"] = True
    given = extractor(audio_target=clips, **options) if short == "SpeechT5" else extractor(clips, **options)
    features = next(value for key, value in given.items() if key in FEATURES)
    mask = next((given[key] for key in MASKS if key in given), None)
    return features, None if short in NO_MASK else mask


def batch(clips):
    size = max(map(len, clips))
    mask = torch.stack([(torch.arange(size) < len(clip)).long() for clip in clips])
    return torch.stack([torch.from_numpy(np.pad(clip, (0, size - len(clip)))) for clip in clips]), mask


@pytest.mark.parametrize("name", EXTRACTORS)
def test_every_extractor(name):
    extractor = make(name)
    rate, short = extractor.sampling_rate, name.removesuffix("FeatureExtractor")
    frontend = KFrontend.from_feature_extractor(extractor)
    noise = np.random.default_rng(1).standard_normal(rate).astype(np.float32)
    quiet_start = np.concatenate([np.zeros(rate // 4, np.float32), speech(0.5, rate, 2)])
    for clips in (
        [speech(0.2, rate, 0)],
        [speech(2.345, rate, 0)],
        [0.1 * noise],
        [quiet_start],
        [speech(1.0, rate, 0), speech(1.7, rate, 1), speech(0.4, rate, 2)],
    ):
        expected, mask = extract(extractor, clips)
        waveform, given = batch(clips)
        actual = frontend(waveform, given).detach()
        assert actual.shape == expected.shape and actual.dtype == torch.float32
        frames = frontend.feature_mask(given)
        if mask is not None:
            assert torch.equal(frames, mask.bool())
        difference = (actual - expected).abs()
        if short == "Phi4Multimodal":  # what it leaves of the padding varies; the model masks it
            difference = difference[frames]
        largest = max(1.0, float(expected.abs().max()))
        tolerance = 5e-4 * largest if short in KALDI else 1e-4 * largest if short in SINGLE else 1e-4
        assert difference.max() < tolerance
        if len(clips) == 1:
            assert near(frontend(waveform).detach(), actual)
            assert near(frontend(waveform[0]).detach(), actual[0])


def test_longer_than_the_window_is_cut():
    extractor = make("WhisperFeatureExtractor", chunk_length=2)
    clip = speech(3.0, 16_000, 0)
    expected, _ = extract(extractor, [clip])
    actual = KFrontend.from_feature_extractor(extractor)(torch.from_numpy(clip)[None])
    assert actual.shape == expected.shape == (1, 80, 200)
    assert (actual - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("WhisperFeatureExtractor", {"feature_size": 128, "n_fft": 512, "hop_length": 128}),
        ("ASTFeatureExtractor", {"do_normalize": False, "max_length": 50, "num_mel_bins": 40}),
        ("Speech2TextFeatureExtractor", {"normalize_vars": False}),
        ("Speech2TextFeatureExtractor", {"do_ceptral_normalize": False}),
        ("SpeechT5FeatureExtractor", {"hop_length": 10, "win_length": 25, "fmin": 20}),
        ("ClapFeatureExtractor", {"truncation": "rand_trunc", "padding": "pad", "max_length_s": 2}),
        ("ClvpFeatureExtractor", {"mel_norms": [1.5] * 80}),
        ("UnivNetFeatureExtractor", {"do_normalize": True, "compression_factor": 2.0}),
        ("ParakeetFeatureExtractor", {"preemphasis": None}),
        ("Gemma3nAudioFeatureExtractor", {"per_bin_mean": [1.0] * 128, "per_bin_stddev": [2.0] * 128}),
        ("InklingFeatureExtractor", {"n_fft": 2048}),
    ],
)
def test_their_options(name, options):
    extractor = make(name, **options)
    clip = speech(1.3, extractor.sampling_rate, 0)
    expected, _ = extract(extractor, [clip])
    actual = KFrontend.from_feature_extractor(extractor)(torch.from_numpy(clip)[None])
    assert (actual - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("normalise", [True, False])
def test_wav2vec2(normalise):
    extractor = make("Wav2Vec2FeatureExtractor", do_normalize=normalise, return_attention_mask=True)
    clips = [speech(1.0, 16_000, 0), speech(0.4, 16_000, 1)]
    given = extractor(clips, sampling_rate=16_000, padding="longest", return_tensors="pt")
    frontend = KFrontend.from_feature_extractor(extractor)
    assert isinstance(frontend, KWaveform)
    waveform, mask = batch(clips)
    assert torch.equal(mask, given["attention_mask"].long())
    assert (frontend(waveform, mask) - given["input_values"]).abs().max() < 1e-4
    assert (frontend(waveform[:1]) - given["input_values"][:1]).abs().max() < 1e-4


def test_an_extractor_that_does_something_else_is_refused():
    extractor = make("WhisperFeatureExtractor", dither=0.1)
    with pytest.raises(StructureError, match="set to do something that its pipeline does not know"):
        KFrontend.from_feature_extractor(extractor)
    with pytest.raises(StructureError, match="no pipeline is known for a EncodecFeatureExtractor"):
        KFrontend.from_feature_extractor(make("EncodecFeatureExtractor"))
    with pytest.raises(StructureError, match="repeatpad"):
        KFrontend.from_feature_extractor(make("ClapFeatureExtractor", padding="repeat"))


def test_inside_whisper_it_learns():
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=20, max_source_positions=50, num_mel_bins=80,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    extractor = make("WhisperFeatureExtractor", chunk_length=1)
    model = WhisperModel(config).eval()
    model.frontend = KFrontend.from_feature_extractor(extractor)
    clip = speech(1.0, 16_000, 0)
    tokens = torch.tensor([[1, 5, 7]])
    features = model.frontend(torch.from_numpy(clip)[None])
    ours = model(input_features=features, decoder_input_ids=tokens).last_hidden_state
    given = extractor(clip, sampling_rate=16_000, return_tensors="pt")
    theirs = model(**given, decoder_input_ids=tokens).last_hidden_state
    assert (ours - theirs).abs().max() < 1e-4
    ours.square().sum().backward()
    gradients = [parameter.grad for parameter in model.frontend.parameters()]
    assert len(gradients) == 4
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)


def test_silence_has_finite_gradients():
    frontend = KFrontend.from_feature_extractor(make("SpeechT5FeatureExtractor"))
    frontend(torch.zeros(1, 4000)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in frontend.parameters())


def test_state_structure_and_dtype():
    extractor = make("WhisperFeatureExtractor", chunk_length=1)
    frontend = KFrontend.from_feature_extractor(extractor)
    other = KFrontend.from_feature_extractor(extractor)
    with torch.no_grad():
        other.dft.factors[0].mul_(2)
    other.load_state_dict(frontend.state_dict())
    x = torch.randn(2, 16_000)
    assert near(other(x), frontend(x))
    fitted = KFrontend.from_feature_extractor(extractor, filters=Kaleidoscope(width=2))
    assert fitted.filters.structure == Kaleidoscope(width=2)
    assert fitted(x).shape == frontend(x).shape
    double = KFrontend.from_feature_extractor(extractor, dtype=torch.float64)
    assert (double(x.double()) - frontend(x)).abs().max() < 1e-4
    low = KFrontend.from_feature_extractor(extractor).to(torch.bfloat16)
    assert low(x).dtype == torch.float32
    assert (low(x.bfloat16()).float() - frontend(x)).abs().max() < 0.2
    with torch.autocast("cpu", torch.bfloat16):
        assert near(frontend(x), frontend(x.clone()))
        assert (frontend(x) - other.double()(x)).abs().max() < 1e-4
    with pytest.raises(ValueError, match="one frame needs 400"):
        KFrontend.from_feature_extractor(make("LasrFeatureExtractor"))(torch.randn(1, 300))
