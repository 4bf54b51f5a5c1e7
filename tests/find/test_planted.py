"""Networks put together at random, with sites planted in them: found are all of those, and no others."""

from itertools import pairwise

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ksurgeon.find import Finder
from tests.find.decoys import NAMED

CHANNELS = 12
KINDS = ("channel_shuffle", "permutation", "transform", "filterbank")
SPELLINGS = ("view", "unflatten", "channel_shuffle", "index", "chunks")
# Decoys that keep the shape, and do not reorder channels in training either.
HARMLESS = sorted(name for name in NAMED if "training only" not in name)


class Shuffle(nn.Module):
    def __init__(self, groups, spelling):
        super().__init__()
        self.groups, self.spelling = groups, spelling
        self.register_buffer("index", torch.arange(CHANNELS).view(groups, -1).T.flatten())

    def forward(self, x):
        b, c, h, w = x.shape
        if self.spelling == "view":
            return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        if self.spelling == "unflatten":
            return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        if self.spelling == "channel_shuffle":
            return torch.channel_shuffle(x, self.groups)
        if self.spelling == "index":
            return x[:, self.index]
        return torch.stack(x.chunk(self.groups, 1), 2).flatten(1, 2)


class Permute(nn.Module):
    def __init__(self, permutation):
        super().__init__()
        self.register_buffer("index", torch.tensor(permutation))

    def forward(self, x):
        return x.index_select(1, self.index)


class Transform(nn.Module):
    """Along the channels, by torch.fft or by a matrix."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        if kind == "dct":
            n, k = torch.arange(CHANNELS), torch.arange(CHANNELS)[:, None]
            self.register_buffer("matrix", (torch.pi / CHANNELS * (n + 0.5) * k).cos() * 2)

    def forward(self, x):
        if self.kind == "dft":
            return torch.fft.fft(x, dim=1).real
        return (x.movedim(1, -1) @ self.matrix.T).movedim(-1, 1)


def permutations():
    return st.permutations(range(CHANNELS)).map(tuple).filter(_is_no_shuffle)


def _is_no_shuffle(permutation):
    step = (permutation[1] - permutation[0]) % CHANNELS
    return any((b - a) % (CHANNELS - 1) != step % (CHANNELS - 1) for a, b in pairwise(permutation))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("channel_shuffle"), st.sampled_from([2, 3, 4, 6]), st.sampled_from(SPELLINGS)),
        st.tuples(st.just("permutation"), permutations()),
        st.tuples(st.just("transform"), st.sampled_from(["dft", "dct"])),
        st.tuples(st.just("pointwise_conv"), st.sampled_from([1, 2, 3])),
        st.tuples(st.just("conv"), st.sampled_from([1, CHANNELS])),
        st.tuples(st.just("decoy"), st.sampled_from(HARMLESS)),
    ),
    min_size=1,
    max_size=6,
)


class Planted(nn.Module):
    """Every step between convolutions and activations, in one forward or in modules of their own."""

    def __init__(self, steps, inline):
        super().__init__()
        self.inline = inline
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.act = nn.Tanh()
        self.steps = nn.ModuleList()
        self.between = nn.ModuleList()
        for kind, *options in steps:
            make = {
                "channel_shuffle": Shuffle,
                "permutation": Permute,
                "transform": Transform,
                "pointwise_conv": lambda groups: nn.Conv2d(CHANNELS, CHANNELS, 1, groups=groups),
                "conv": lambda groups: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=groups),
                "decoy": lambda name: NAMED[name](),
            }[kind]
            self.steps.append(make(*options))
            self.between.append(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1))

    def forward(self, x):
        x = self.act(self.stem(x))
        for step, between in zip(self.steps, self.between, strict=True):
            if hasattr(step, "function"):
                y = step.function(step, x)
                x = y if y.shape == x.shape else x
            else:
                x = step.forward(x) if self.inline and not isinstance(step, nn.Conv2d) else step(x)
            x = self.act(between(self.act(x)))
        return x


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(steps=STEPS, inline=st.booleans())
def test_all_that_is_planted_is_found_and_nothing_else(steps, inline):
    torch.manual_seed(0)
    model, x = Planted(steps, inline).eval(), torch.randn(2, 3, 4, 4)
    finder = Finder(model, x)
    assert finder.failures == {}
    found = [site for site in finder.sites if site.kind in KINDS]
    planted = [(kind, *options) for kind, *options in steps if kind in KINDS]
    own = [site for site in found if not inline or site.owner == ""]
    assert len(found) == len(planted) == len(own)
    for site, (kind, what, *_) in zip(found, planted, strict=True):
        assert site.kind == kind
        if kind == "channel_shuffle":
            assert site.groups == what
        elif kind == "permutation":
            assert site.permutation == what
        else:
            assert site.facts["transform"] == what
    pointwise = sum(site.kind == "pointwise_conv" for site in finder.sites)
    assert pointwise == sum(kind == "pointwise_conv" for kind, *_ in steps)
