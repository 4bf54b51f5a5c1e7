"""A conversion, printed and in a notebook."""

import torch
from torch import nn

import ksurgeon
from ksurgeon import Chain, LowRank
from tests import zoo


def test_it_prints_as_a_table():
    model = zoo.mlp().eval()
    done = ksurgeon.convert(model, {"up": LowRank(4), "down": LowRank(8)}, zoo.example("mlp"))
    assert repr(done).startswith("Conversion(Mlp, rule='low_rank', 2 of 3 sites replaced, output change 0.")
    text = str(done)
    assert "rank 4" in text and "rank 8" in text and "1 linear left: part 2: not among its targets" in text
    assert "16,384" in text and "parameters" in text and "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 110
    html = done._repr_html_()
    assert html.startswith("<pre") and "rank 8" in html and "<style" not in html


def test_a_large_one_fits_a_screen():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(60))).eval()
    chain = tuple((1, 16, 16, 1) for _ in range(40))
    structures = {str(i): LowRank(1 + i % 7) if i % 3 else Chain(chain[: 1 + i % 2]) for i in range(50)}
    done = ksurgeon.convert(model, structures, torch.randn(2, 16))
    text = str(done)
    assert len(text.splitlines()) <= 40 and len(text) < 6000 and len(repr(done)) < 200
    number = len(done.results)
    assert repr(done.plan) == f"Plan(rule='chain, low_rank', replaced={number}, left={60 - number})"
    assert all(len(repr(site)) < 1000 for site in done.sites)


def test_a_shuffle_does_not_print_its_permutation():
    done = ksurgeon.convert(zoo.shufflenet_v1_g4().eval(), "shuffle", zoo.example("shufflenet_v1_g4"))
    assert len(str(done).splitlines()) <= 40 and all(len(repr(site)) < 1000 for site in done.sites)
    assert "exact" in str(done)
