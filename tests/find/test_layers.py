import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import ksurgeon
from ksurgeon.find import Finder


def site_of(model, example, path):
    return next(site for site in Finder(model, example).sites if site.path == path)


def test_sizes_vectors_and_multiplications():
    model = nn.Sequential(nn.Conv2d(8, 12, 1, stride=2, groups=2), nn.Flatten(2), nn.Linear(16, 5))
    conv, linear = Finder(model, torch.randn(3, 8, 8, 8)).sites
    assert (conv.kind, conv.in_features, conv.out_features, conv.groups) == ("pointwise_conv", 8, 12, 2)
    assert (conv.vectors, conv.parameters, conv.weight_parameters) == (16, 60, 48)
    assert conv.multiplications == 16 * 48
    assert (linear.kind, linear.vectors, linear.multiplications) == ("linear", 12, 12 * 80)


class Other(nn.Linear):
    def forward(self, x):
        return x @ self.weight.softmax(-1)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 8)

    def forward(self, x):
        return x * self.proj.weight.shape[0]


def quantised():
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    model[0].forward = lambda x: x
    return model


REFUSED = [
    (nn.Sequential(weight_norm(nn.Linear(8, 8))), torch.randn(2, 8), "0", "parametrised"),
    (nn.Sequential(Other(8, 8)), torch.randn(2, 8), "0.weight", "computed from it (softmax)"),
    (nn.Sequential(nn.Conv2d(8, 8, 1, padding=1)), torch.randn(2, 8, 4, 4), "0", "padding"),
    (nn.Sequential(nn.Conv2d(8, 8, 1, groups=8)), torch.randn(2, 8, 4, 4), "0", "one channel a group"),
    (Tied(), torch.zeros(2, 3, dtype=torch.long), "head", "tied to embed.weight"),
    (Unused(), torch.randn(2, 8), "proj", "nothing used it"),
    (quantised(), torch.randn(2, 8), "0", "quantised"),
    (nn.Linear(8, 8), torch.randn(2, 8), "", "whole model"),
]


@pytest.mark.parametrize(
    ("model", "example", "path", "reason"), REFUSED, ids=lambda v: v if isinstance(v, str) else ""
)
def test_what_cannot_be_replaced_says_why(model, example, path, reason):
    assert reason in site_of(model, example, path).reason


def test_lazy_layers_are_refused():
    (site,) = Finder(nn.Sequential(nn.LazyLinear(4))).sites
    assert "not initialised" in site.reason


def test_a_module_used_twice_is_one_site():
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    (site,) = Finder(model, torch.randn(2, 8)).sites
    assert (site.path, site.aliases, site.vectors) == ("0", ("2",), 2)


def test_inputs_are_guessed_from_the_first_layer():
    (site,) = ksurgeon.find(nn.Sequential(nn.Linear(8, 8)))
    assert (site.kind, site.vectors) == ("linear", 1)
    conv, shuffle = ksurgeon.find(nn.Sequential(nn.Conv2d(3, 12, 1), nn.ChannelShuffle(3)))
    assert (conv.kind, shuffle.kind) == ("pointwise_conv", "channel_shuffle")


def test_layers_are_found_without_inputs_that_fit():
    with pytest.warns(UserWarning, match="no example_inputs"):
        bilinear, linear = ksurgeon.find(nn.Sequential(nn.Bilinear(2, 3, 4), nn.Linear(4, 8)))
    assert "bilinear" in bilinear.reason
    assert (linear.path, linear.vectors, linear.reason) == ("1", 0, None)


def test_inputs_that_do_not_fit_are_named():
    from ksurgeon import InputError

    with pytest.raises(InputError, match=r"\(2, 9\)"):
        Finder(nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 9))


def test_a_weight_that_is_read_is_said_to_be_and_its_cost_is_told():
    from ksurgeon.kmatrix.structures import Kaleidoscope
    from ksurgeon.rules.load import load_rule
    from ksurgeon.rules.plan import make_plan
    from ksurgeon.rules.schema import Replacement, Rule
    from tests import zoo

    sites = {site.path: site for site in Finder(zoo.attention(), zoo.example("attention")).sites}
    assert {path for path, site in sites.items() if site.read} == {
        "own.in_proj_weight",
        "own.out_proj",
        "cross.q_proj_weight",
        "cross.k_proj_weight",
        "cross.v_proj_weight",
        "cross.out_proj",
    }
    own = sites["own.in_proj_weight"]
    assert (own.in_features, own.out_features, own.parts, own.vectors) == (32, 96, 3, 5)
    plan = make_plan(list(sites.values()), load_rule("linear"))
    assert {d.path for d in plan.decisions if "multiplied out at every call" in (d.reason or "")} == {
        path for path, site in sites.items() if site.read
    }
    part = Replacement(find="linear", structure=Kaleidoscope())
    plan = make_plan(list(sites.values()), Rule(name="all", replace=(part,)))
    decision = next(d for d in plan.decisions if d.path == own.path)
    assert decision.multiplications_after == own.multiplications + 32 * decision.parameters_after
