"""What the oracles see, against modules that are known."""

import pytest
import torch
from torch import Tensor, nn

from tools.survey.movers import movers
from tools.survey.oracle import Oracle


class Hidden(nn.Module):
    """Multiplies by a parameter where no function of torch can be seen to do so."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.weight = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.seen(x) @ (2 * self.weight) * self.scale


class Fourier(nn.Module):
    """Two transforms of the input, and one of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(self.filter), 8)


def test_the_oracle_sees_what_is_computed_from_a_parameter():
    model = Hidden()
    oracle = Oracle(model)
    with oracle.watching():
        model(torch.randn(2, 4))
    assert oracle.found == {"seen.weight", "weight"}


def test_the_oracle_counts_transforms_by_module_and_call():
    fourier = Fourier()
    model = nn.Sequential(nn.Linear(8, 8), fourier, nn.Sequential(fourier, nn.ReLU()))
    oracle = Oracle(model)
    with oracle.watching():
        model(torch.randn(2, 8))
    assert oracle.transforms == {"1": 2}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


MOVERS = [
    ("shuffle", nn.ChannelShuffle(2), 1),
    ("flip", Of(lambda x: x.flip(2)), 2),
    ("roll", Of(lambda x: x.roll(1, -1)), 3),
    ("batch", Of(lambda x: x.flip(0)), None),
    ("two dimensions", Of(lambda x: x.transpose(2, 3)), None),
    ("both", Of(lambda x: x.flip(2, 3)), None),
    ("identity", nn.Identity(), None),
    ("values", Of(lambda x: -x), None),
    ("sorted", Of(lambda x: x.sort(-1).values), None),
    ("repeats", Of(lambda x: x[:, :1].expand_as(x)), None),
    ("rectified", nn.ReLU(), None),
]


@pytest.mark.parametrize(("module", "dim"), [case[1:] for case in MOVERS], ids=[case[0] for case in MOVERS])
def test_a_module_that_only_reorders_is_seen(module, dim):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), module)
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        assert movers(model, lambda: model(x)) == ({} if dim is None else {"1": dim})
