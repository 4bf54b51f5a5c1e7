"""Models of timm, torchvision and transformers beside oracles that share no code with the finder."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.survey.test_oracle import Fourier, Hidden
from tools.survey import looking
from tools.survey.looking import compare, look_at
from tools.survey.tiny import LIBRARIES, names

MODELS = [
    ("timm", "test_vit"),
    ("timm", "test_nfnet"),
    ("transformers", "bert"),
    ("transformers", "gpt2"),
    ("transformers", "falcon"),
    ("transformers", "t5"),
    ("transformers", "vit"),
    ("transformers", "whisper"),
    ("transformers", "wav2vec2"),
    ("transformers", "mixtral"),
    ("transformers", "fnet"),
    ("torchvision", "shufflenet_v2_x0_5"),
]


@pytest.mark.parametrize(("library", "name"), MODELS, ids=lambda v: v)
def test_every_linear_map_is_a_site_or_has_a_reason(library, name):
    told = look_at(library, name)
    assert told.state == "analysed", told
    assert told.missed == ()
    assert told.linear > 0 and told.listed == told.linear
    assert told.failures == {}


def test_the_survey_is_of_three_whole_libraries():
    lists = {library: names(library) for library in LIBRARIES}
    assert len(lists["timm"]) >= 90 and len(lists["torchvision"]) >= 80 and len(lists["transformers"]) >= 300


def test_what_the_finder_loses_is_told(monkeypatch):
    nothing = SimpleNamespace(sites=(), traces={}, failures={})
    monkeypatch.setattr(looking, "Finder", lambda *_: nothing)
    model = nn.Sequential(nn.Unflatten(1, (2, 4)), Hidden(), nn.Flatten(), Fourier(), nn.ChannelShuffle(2))
    model.append(nn.Identity())
    told = compare("timm", "hidden", model[:4], (torch.randn(2, 8),))
    assert told.missed == ("1.seen.weight", "1.weight", "Fourier transform in 3") and told.listed == 0
    images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ChannelShuffle(2))
    told = compare("timm", "hidden", images, (torch.randn(2, 3, 5, 5),))
    assert told.missed == ("permutation 1",)


def test_what_the_finder_knows_is_not_missed():
    model = nn.Sequential(nn.Linear(8, 8), Fourier(), nn.Unflatten(1, (4, 1, 2)), nn.ChannelShuffle(2))
    told = compare("timm", "known", model, (torch.randn(2, 8),))
    assert told.missed == () and told.kinds["channel_shuffle"] == 1


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ImportError("DinatModel requires the natten library but it was not found"), "not installed"),
        (RuntimeError("no small configuration: ModuleNotFoundError: causal_conv1d"), "not installed"),
        (RuntimeError("no small configuration: 340 million parameters"), "not built"),
    ],
)
def test_a_model_that_cannot_be_built_is_told(monkeypatch, error, state):
    def build(*_):
        raise error
        yield

    monkeypatch.setattr(looking, "build", build)
    told = look_at("transformers", "absent")
    assert told.state == state and str(error)[:40] in told.reason


def test_the_first_size_that_runs_is_looked_at(monkeypatch):
    sizes = [nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 4)), nn.Sequential(nn.Linear(4, 4))]
    monkeypatch.setattr(looking, "build", lambda *_: iter(sizes))
    assert look_at("timm", "two").kinds == {"linear": 1}
    monkeypatch.setattr(looking, "build", lambda *_: iter(sizes[:1]))
    told = look_at("timm", "one")
    assert told.state == "not run" and "RuntimeError" in told.reason


def test_a_crash_of_the_finder_is_a_failure(monkeypatch):
    def crash(*_):
        raise KeyError("node")

    monkeypatch.setattr(looking, "Finder", crash)
    monkeypatch.setattr(looking, "build", lambda *_: iter([nn.Sequential(nn.Linear(4, 4))]))
    told = look_at("timm", "crash")
    assert told.state == "failed" and told.reason == "KeyError: 'node'"
