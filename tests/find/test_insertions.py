"""Where a map could be inserted, and why it could not."""

from functools import cache

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon.find import Finder
from ksurgeon.kmatrix.structures import Dense
from ksurgeon.rules import Replacement, Rule
from tests import zoo

EXACT = Rule(name="exact", replace=(Replacement(find="pointwise_conv", structure=Dense(), start="exact"),))


def insertions(model, example=None):
    return {site.path: site for site in Finder(model, example).insertions}


def test_places_dimensions_and_sizes():
    found = insertions(zoo.convnet(), zoo.example("convnet"))
    before, after = found["strided:before.dim1"], found["strided:after.dim1"]
    assert (before.in_features, before.out_features, before.vectors, before.ndim) == (128, 128, 64, 4)
    assert (after.in_features, after.vectors, after.reason) == (64, 16, None)
    assert found["strided:before.dim3"].in_features == 8
    assert "batch" in found["strided:before.dim0"].reason
    assert all(site.parameters == 0 for site in found.values())


def test_find_tells_of_them_when_asked():
    model, x = zoo.mlp(), zoo.example("mlp")
    assert {site.kind for site in ksurgeon.find(model, x)} == {"linear"}
    paths = [site.path for site in ksurgeon.find(model, x, insertions=True) if site.kind == "insertion"]
    assert "up:before.dim1" in paths and "down:after.dim1" in paths


class Odd(nn.Module):
    """Modules that are called in ways that allow no map, and one that is called twice."""

    def __init__(self):
        super().__init__()
        self.table, self.pool = nn.Embedding(9, 8), nn.AdaptiveMaxPool1d(4, return_indices=True)
        self.own, self.twice = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)
        self.lists, self.keyword, self.unused = nn.Identity(), nn.Linear(8, 8), nn.Linear(8, 8)
        self.sizes, self.ranks, self.steps = nn.ReLU(), nn.Tanh(), nn.Sequential(nn.ReLU())
        self.script = torch.jit.script(nn.Linear(8, 8))
        self.graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 8)))

    def forward(self, x):
        y = self.twice(self.twice(self.table(x)))
        y = self.own(y, y, y)[0]
        self.pool(y), self.lists([y]), self.sizes(y), self.sizes(y[:, :3]), self.ranks(self.ranks(y)[0])
        return self.graph(self.script(self.steps(self.keyword(input=y))))


@cache
def of_odd():
    return insertions(Odd(), torch.arange(10).view(2, 5) % 9)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (":before", "whole model"),
        ("steps:after", "insert after one of those"),
        ("table:before", "int64"),
        ("pool:after", "no single tensor"),
        ("own:after", "no single tensor"),
        ("own.out_proj:before", "does not call it"),
        ("lists:before", "no tensor"),
        ("keyword:before", "keyword"),
        ("unused:before", "nothing called it"),
        ("sizes:before.dim1", "3 and 5 entries"),
        ("ranks:after", "2 and 3 dimensions"),
        ("script:before", "torch.jit"),
        ("graph:before", "GraphModule"),
        ("sizes:before.dim2", None),
        ("keyword:after.dim2", None),
        ("table:after.dim2", None),
    ],
)
def test_reasons(path, reason):
    found = of_odd()[path].reason
    assert found is None if reason is None else reason in found


def test_a_module_that_is_called_twice_is_counted_twice():
    site = of_odd()["twice:before.dim2"]
    assert (site.reason, site.vectors) == (None, 10)


def test_nothing_is_known_without_a_run():
    assert "example inputs" in insertions(zoo.mlp())["up:before"].reason
    with pytest.warns(UserWarning, match="initialise"):
        assert (
            "example inputs"
            in insertions(nn.Sequential(nn.LazyLinear(4)), torch.randn(2, 3))["0:before"].reason
        )


def test_what_a_k_layer_runs_does_not_hide_what_comes_after_it():
    """The recorder once took the hooks that K-matrices call on their lists of factors for calls."""
    model, x = zoo.convnet().eval(), zoo.example("convnet")
    ksurgeon.convert(model, EXACT, x)
    found = insertions(model, x)
    assert found["wide:after.dim1"].in_features == 128 and found["fc:after.dim1"].in_features == 10
