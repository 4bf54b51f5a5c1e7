import copy

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon.errors import SurgeryError
from ksurgeon.frontend import KFilters, KFrontend
from ksurgeon.frontend.pipeline import Pipeline

CASES = {
    "torchaudio.transforms": {
        "Spectrogram": [
            {}, {"n_fft": 512, "win_length": 400, "hop_length": 160, "power": None, "normalized": True},
            {"power": 1, "center": False, "normalized": "frame_length"}, {"pad": 7, "center": False},
        ],
        "MelSpectrogram": [
            {"n_mels": 64}, {"n_mels": 40, "power": 1.0, "norm": "slaney", "mel_scale": "slaney", "pad": 9,
             "pad_mode": "constant"},
        ],
        "MFCC": [
            {"melkwargs": {"n_mels": 64}},
            {"log_mels": True, "n_mfcc": 13, "norm": None, "melkwargs": {"n_mels": 64}},
        ],
        "MelScale": [{"n_stft": 201}],
    },
    "nnAudio.features": {
        "STFT": [
            {"n_fft": 512, "verbose": False},
            {"n_fft": 512, "win_length": 400, "hop_length": 160, "output_format": "Magnitude"},
        ],
        "MelSpectrogram": [
            {"n_fft": 1024, "verbose": False},
            {"n_fft": 512, "n_mels": 40, "power": 1.0, "trainable_STFT": True, "trainable_mel": True},
        ],
    },
    "torchlibrosa": {
        "Spectrogram": [{"n_fft": 1024, "hop_length": 320}, {"n_fft": 512, "power": 1.0, "center": False}],
        "LogmelFilterBank": [
            {"n_fft": 400, "n_mels": 40}, {"n_fft": 400, "n_mels": 40, "top_db": None, "ref": 2.0},
            {"n_fft": 400, "n_mels": 40, "is_log": False},
        ],
    },
    "speechbrain.processing.features": {
        "STFT": [{"sample_rate": 16000}, {"sample_rate": 16000, "n_fft": 512, "normalized_stft": True}],
        "Filterbank": [{}, {"log_mel": False, "filter_shape": "gaussian"}],
    },
}  # fmt: skip
TAKES_SPECTROGRAMS = ("MelScale", "LogmelFilterBank", "Filterbank")


class Around(nn.Module):
    def __init__(self, front):
        super().__init__()
        self.front, self.gain = front, nn.Parameter(torch.ones(()))

    def forward(self, x):
        y = self.front(self.gain * x)
        return torch.view_as_real(y) if y.is_complex() else y


def example(name, shape=(2, 6000)):
    if name in TAKES_SPECTROGRAMS:
        x = torch.randn(shape[0], 30, 201).square()
        return x.transpose(1, 2) if name == "MelScale" else x
    return torch.randn(shape)


def near(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    ("library", "name", "options"),
    [
        (lib, name, options)
        for lib, names in CASES.items()
        for name, list_ in names.items()
        for options in list_
    ],
)
def test_replaced_exactly_learnable_saved_and_reverted(library, name, options, tmp_path):
    try:
        module = getattr(pytest.importorskip(library), name)
    except RuntimeError as error:  # torchaudio says so itself
        pytest.skip(str(error)[:80])
    torch.manual_seed(0)
    front = module(**options)
    model, x = Around(front).eval(), example(name)
    fresh, expected = copy.deepcopy(model), model(x)
    (site,) = [s for s in ksurgeon.find(model, x) if s.kind == "filterbank"]
    assert site.reason is None and site.path == "front"
    conversion = ksurgeon.convert(model, "filterbank", x)
    assert isinstance(model.front, (KFrontend, KFilters))
    assert conversion.results[0].parameters_after == sum(p.numel() for p in model.front.parameters())
    near(model(x), expected)
    model(x).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.front.parameters())
    if library.startswith("torchaudio") and name != "MelScale":
        for shape in ((6000,), (2, 3, 5000)):
            other = torch.randn(shape)
            near(model(other), fresh(other))
    ksurgeon.save(model, tmp_path / "model")
    loaded = ksurgeon.load(tmp_path / "model", model=fresh)
    near(loaded(x), model(x))
    ksurgeon.revert(loaded)
    assert type(loaded.front) is module
    near(loaded(x), expected)


class Spectrogram(nn.Module):
    """As torchaudio's, as far as its settings go."""

    __module__ = "torchaudio.transforms"
    onesided, normalized, center, pad_mode, pad = True, False, True, "reflect", 0

    def __init__(self, n_fft=48, hop_length=16, power=2.0):
        super().__init__()
        self.n_fft, self.hop_length, self.power = n_fft, hop_length, power
        self.register_buffer("window", torch.hann_window(n_fft))

    def forward(self, x):
        y = torch.stft(x, self.n_fft, self.hop_length, window=self.window, return_complex=True)
        return y.abs() ** self.power


class Mel(nn.Module):
    __module__, __qualname__ = "torchaudio.transforms", "MelSpectrogram"

    def __init__(self):
        super().__init__()
        self.spectrogram, self.mel_scale = Spectrogram(), nn.Module()
        self.mel_scale.register_buffer("fb", torch.rand(25, 6))

    def forward(self, x):
        return self.mel_scale.fb.T @ self.spectrogram(x)


Mel.__name__ = "MelSpectrogram"


def sites(model, x):
    return [site for site in ksurgeon.find(model, x) if site.kind == "filterbank"]


def test_the_outermost_is_the_site():
    model, x = Around(Mel()), torch.randn(2, 500)
    (site,) = sites(model, x)
    assert (site.path, site.in_features, site.out_features) == ("front", 48, 6)
    expected = model(x)
    ksurgeon.replace_modules(model, "filterbank", x)
    near(model(x), expected)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_rule_may_ask_for_the_symmetry_of_real_input(power, tmp_path):
    model, x = Around(Spectrogram(power=power)).eval(), torch.randn(3, 700)
    fresh, expected = copy.deepcopy(model), model(x)
    structure = {"structure": "butterfly", "symmetric": True}
    part = {"find": "filterbank", "with": structure, "start": "exact"}
    rule = ksurgeon.Rule.model_validate({"schema": 1, "name": "symmetric", "replace": [part]})
    conversion = ksurgeon.convert(model, rule, x)
    assert model.front.dft.symmetric
    assert conversion.results[0].parameters_after == sum(p.numel() for p in model.front.parameters())
    near(model(x), expected)
    with torch.no_grad():
        for factor in model.front.dft.factors:
            factor.mul_(1 + 0.1 * torch.rand_like(factor))
    trained = model(x)
    assert (trained - expected).abs().max() > 0.01 * expected.abs().max()
    with torch.no_grad():
        near(model(x), trained)
    trained.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.front.parameters())
    ksurgeon.save(model, tmp_path / "model")
    near(ksurgeon.load(tmp_path / "model", model=fresh)(x), trained)


def test_a_module_used_twice_is_replaced_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = Spectrogram()
            self.second, self.scale = self.first, nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.first(x) * self.scale + self.second(2 * x)

    model, x = Twice(), torch.randn(2, 500)
    (site,) = sites(model, x)
    assert site.aliases == ("second",)
    expected = model(x)
    ksurgeon.replace_modules(model, "filterbank", x)
    assert model.first is model.second
    near(model(x), expected)


class Other(Spectrogram):
    __module__, __qualname__ = "elsewhere.transforms", "Spectrogram"


class Changed(Spectrogram):
    """Of the right name, but it does something else."""

    __module__ = "torchaudio.transforms"

    def forward(self, x):
        return super().forward(x).sqrt()


Changed.__name__ = "Spectrogram"


def test_decoys():
    x = torch.randn(2, 500)
    assert sites(Around(Other()), x) == []
    (site,) = sites(Around(Changed()), x)
    assert "differ" in site.reason
    trained = Spectrogram()
    trained.onesided = False
    (site,) = sites(Around(trained), x)
    assert site.reason == "a two-sided spectrum"
    (site,) = sites(Spectrogram(), x)
    assert "whole model" in site.reason

    class Unused(Around):
        def forward(self, x):
            return x * self.gain

    (site,) = sites(Unused(Spectrogram()), x)
    assert "not called" in site.reason


def test_a_trained_one_is_kept():
    model, x = Around(Spectrogram()), torch.randn(2, 500)
    ksurgeon.replace_modules(model, "filterbank", x)
    with torch.no_grad():
        model.front.dft.factors[0].mul_(1.1)
    expected = model(x)
    with pytest.raises(SurgeryError, match="front was trained"):
        ksurgeon.revert(model)
    near(model(x), expected)


def test_double_precision_stays():
    model = Around(Spectrogram()).to(torch.float64)
    x = torch.randn(2, 500, dtype=torch.float64)
    expected = model(x)
    ksurgeon.replace_modules(model, "filterbank", x)
    assert (model(x) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("power", [1.0, 2.0, None])
def test_no_waveforms(power):
    made = KFrontend(Pipeline(n_fft=32, hop=8, window=torch.hann_window(32), pad=(16, 16), power=power))
    with torch.no_grad():
        assert made(torch.randn(0, 100)).shape == (0, 13, 17)
    found = made(torch.randn(0, 100))
    assert found.shape == (0, 13, 17)
    found.abs().sum().backward()


def test_long_batches_are_worked_on_in_pieces():
    x = torch.randn(3, 30_000)
    for power in (1.0, 2.0):
        model = Around(Spectrogram(power=power)).eval()
        expected = model(x)
        ksurgeon.replace_modules(model, "filterbank", x)
        near(model(x), expected)
        with torch.no_grad():
            near(model(x), expected)
