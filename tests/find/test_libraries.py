"""Models of timm, torchvision and transformers beside an oracle that shares no code with the finder."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.oracle import Oracle
from benchmarks.survey import LIBRARIES, compare, look_at, table
from ksurgeon.survey.tiny import names

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
]


@pytest.mark.parametrize(("library", "name"), MODELS, ids=lambda v: v)
def test_every_weight_in_a_product_is_a_site_or_has_a_reason(library, name):
    told = look_at(library, name)
    assert told["state"] == "analysed", told
    assert told["missed"] == []
    assert told["linear"] > 0 and told["listed"] == told["linear"]
    assert told["failures"] == {}


def test_the_survey_is_of_three_whole_libraries():
    lists = {library: names(library) for library in LIBRARIES}
    assert len(lists["timm"]) >= 90 and len(lists["torchvision"]) >= 80 and len(lists["transformers"]) >= 300


class Hidden(nn.Module):
    """Multiplies by a parameter where no function of torch can be seen to do so."""

    def __init__(self):
        super().__init__()
        self.seen, self.weight = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return self.seen(x) @ (2 * self.weight) * self.scale


def test_the_oracle_sees_what_is_computed_from_a_parameter():
    model = Hidden()
    oracle = Oracle(model)
    with oracle:
        model(torch.randn(2, 4))
    assert oracle.found == {"seen.weight", "weight"}


def test_a_model_whose_sites_are_lost_is_told(monkeypatch):
    from benchmarks import survey

    nothing = SimpleNamespace(sites=(), traces={}, failures={})
    monkeypatch.setattr(survey, "Finder", lambda *_: nothing)
    told = compare(Hidden(), (torch.randn(2, 4),))
    assert told["missed"] == ["seen.weight", "weight"] and told["listed"] == 0
    text = table([{"library": "timm", "name": "hidden", **told}])
    assert "| timm | 1 of " in text and "1 models" in text
