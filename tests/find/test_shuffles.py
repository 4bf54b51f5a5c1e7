import pytest
import torch
import torchvision
from torch import nn

from ksurgeon.find import Finder
from ksurgeon.kmatrix.shuffle import shuffle_permutation
from tests import zoo
from tests.find.spellings import DECOYS, SPELLINGS, Twice


def shuffles(model, example):
    return [site for site in Finder(model, example).sites if site.kind == "channel_shuffle"]


@pytest.mark.parametrize("network", SPELLINGS, ids=lambda c: c.__name__)
def test_every_spelling_is_found(network):
    model = network()
    found = shuffles(model, model.example())
    assert len(found) == (2 if network is Twice else 1)
    for site in found:
        assert site.reason is None
        assert site.permutation == shuffle_permutation(network.channels, network.groups)
        assert site.groups == network.groups
        assert site.in_features == site.out_features == network.channels


@pytest.mark.parametrize("network", DECOYS, ids=lambda c: c.__name__)
def test_no_decoy_is_found(network):
    model = network()
    assert shuffles(model, model.example()) == []


def test_channels_last_memory_format():
    model = SPELLINGS[1]().to(memory_format=torch.channels_last)
    assert len(shuffles(model, model.example().to(memory_format=torch.channels_last))) == 1


@pytest.mark.parametrize("groups", [3, 4, 8])
def test_shufflenet_v1(groups):
    name = f"shufflenet_v1_g{groups}"
    found = shuffles(getattr(zoo, name)(), zoo.example(name))
    assert [site.groups for site in found] == [groups] * 4
    assert [site.owner for site in found] == [f"units.{i}" for i in range(4)]


@pytest.mark.parametrize("width", ["x0_5", "x1_0", "x1_5", "x2_0"])
def test_shufflenet_v2(width):
    model = torchvision.models.get_model(f"shufflenet_v2_{width}")
    found = shuffles(model, torch.randn(1, 3, 64, 64))
    assert len(found) == 16
    assert {site.groups for site in found} == {2}


def test_the_model_is_not_touched():
    model = SPELLINGS[0]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes, hooks = set(vars(model)), [len(m._forward_hooks) for m in model.modules()]
    state = torch.random.get_rng_state()
    x = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    Finder(model, x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training and set(vars(model)) == attributes
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_shuffle_whose_owner_fixes_sizes_is_reported_not_replaced():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 12, 1)

        def forward(self, x):
            x = self.conv(x)
            rows = [torch.zeros(12) for _ in range(int(x.shape[0]))]
            return torch.channel_shuffle(x, 3) + rows[0].view(1, -1, 1, 1)

    (site,) = shuffles(Fixed(), torch.randn(2, 3, 4, 4))
    assert "fixes sizes" in site.reason
