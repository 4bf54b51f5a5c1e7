"""Trips of whole models, and that a trip notices what goes wrong on it."""

import pytest
import torch
from torch import nn

from ksurgeon.models.inputs import inputs_for
from ksurgeon.rules.schema import Rule
from tools.survey import round_trip as trips
from tools.survey.round_trip import round_trip
from tools.survey.tiny import build


@pytest.mark.parametrize(
    ("library", "name", "generates"),
    [
        ("transformers", "gpt2", True),
        ("transformers", "t5", True),
        ("transformers", "bart", True),
        ("transformers", "fnet", False),
        ("timm", "test_nfnet", False),
        ("timm", "test_vit", False),
    ],
)
def test_a_model_comes_back(library, name, generates):
    model = next(build(library, name))
    told = round_trip(model, inputs_for(model))
    assert told.failed == "" and told.replaced > 0
    assert bool(told.generated) == generates


def _keeps(folder, model):
    return model


def _stays(model):
    return model


def _shifts(model, rule, inputs):
    conversion = convert(model, rule, inputs)
    with torch.no_grad():
        model[0].bias.add_(1)
    return conversion


def _detaches(model, rule, inputs):
    conversion = convert(model, rule, inputs)
    model[0].matrix.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    return conversion


convert = trips.convert


@pytest.mark.parametrize(
    ("name", "instead", "said"),
    [
        ("load", _keeps, "another state dict|load: "),
        ("revert", _stays, "revert: another state dict"),
        ("convert", _shifts, "forward: the outputs changed"),
        ("convert", _detaches, "backward: no gradient reaches 0"),
    ],
)
def test_what_goes_wrong_is_noticed(monkeypatch, name, instead, said):
    monkeypatch.setattr(trips, name, instead)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    told = round_trip(model, (torch.randn(3, 6),))
    assert any(part in told.failed for part in said.split("|")), told


def test_a_model_without_sites_comes_back():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert round_trip(model, (torch.randn(1, 3, 8, 8),)) == trips.Trip()


def test_the_rule_takes_every_weight_exactly():
    assert isinstance(trips.EXACT, Rule) and {part.start for part in trips.EXACT.replace} == {"exact"}


class Endless(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        y = self.layer(x)
        return torch.cat([y, y.log(), y / 0])


def test_outputs_that_are_infinite_or_no_number_can_be_compared():
    trip = round_trip(Endless(), (torch.randn(4, 8),))
    assert trip.failed == "" and trip.replaced == 1


class Tokens(nn.Module):
    """Channels normalised by hand or by PyTorch, then weighted as tokens that lie in order."""

    def __init__(self, by_hand):
        super().__init__()
        self.by_hand = by_hand
        self.norm = nn.BatchNorm2d(4)
        self.weight = nn.Parameter(torch.randn(9, 4))

    def forward(self, images):
        if self.by_hand:
            weight, bias = (p[:, None, None] for p in (self.norm.weight, self.norm.bias))
            images = images / (1 + self.norm.eps) ** 0.5 * weight + bias
        else:
            images = self.norm(images)
        return images.flatten(2).transpose(1, 2).contiguous() * self.weight


def test_gradients_are_right_where_those_of_pytorch_are_not():
    # One image, and a gradient that is in order as tokens: see trips._batch_norms_right.
    model, by_hand = Tokens(False), Tokens(True)
    by_hand.load_state_dict(model.state_dict())
    images = torch.randn(1, 4, 3, 3)
    want = trips._gradients(by_hand, (images,))
    torch.testing.assert_close(trips._gradients(model, (images,)), want)


class Trembling(nn.Linear):
    """Its outputs tell little of rounding, its gradients much."""

    def forward(self, x):
        return x + 1e-7 * torch.sin(1e8 * super().forward(x))


def test_gradients_that_rounding_changes_as_much_are_not_held_against_a_model(monkeypatch):
    torch.manual_seed(0)
    inputs = (torch.randn(3, 8),)
    assert trips._Trip(nn.Linear(8, 8), inputs)._of_rounding() < 1e-5
    assert trips._Trip(Trembling(8, 8), inputs)._of_rounding() > 0.1
    monkeypatch.setattr(trips, "_GRADIENTS", -1.0)
    monkeypatch.setattr(trips._Trip, "_of_rounding", lambda self: 0.5)
    told = round_trip(nn.Sequential(nn.Linear(8, 8)), inputs)
    assert told.failed == "" and not told.steady
    monkeypatch.setattr(trips._Trip, "_of_rounding", lambda self: -1.0)
    assert "backward" in round_trip(nn.Sequential(nn.Linear(8, 8)), inputs).failed
