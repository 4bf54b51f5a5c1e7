import pytest
import torch

import ksurgeon
from ksurgeon.kmatrix.shuffle import KChannelShuffle
from tests.find.permutation_spellings import REFUSED, SPELLINGS
from tests.near import near


@pytest.mark.parametrize("network", SPELLINGS, ids=lambda c: c.__name__)
def test_every_spelling_is_replaced_exactly_saved_and_reverted(network, tmp_path):
    torch.manual_seed(0)
    model = network().eval()
    state, x = model.state_dict(), model.example()
    expected = model(x)
    ksurgeon.replace_modules(model, "permutation", x)
    assert sum(isinstance(module, KChannelShuffle) for module in model.modules()) == 1
    assert near(model(x), expected)
    assert near(model(torch.cat([x, x])), model(torch.cat([x, x]).clone()))
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    ksurgeon.save(model, tmp_path / "model")
    fresh = network()
    fresh.load_state_dict(state)
    loaded = ksurgeon.load(tmp_path / "model", model=fresh)
    assert near(loaded(x), expected)
    ksurgeon.revert(loaded)
    assert type(loaded) is network
    assert list(loaded.state_dict()) == list(state)
    assert near(loaded(x), expected)


@pytest.mark.parametrize("network", REFUSED, ids=lambda c: c.__name__)
def test_what_is_not_fixed_stays(network):
    model = network()
    with pytest.raises(ksurgeon.MatchError, match="matched nothing it could replace"):
        ksurgeon.replace_modules(model, "permutation", model.example())


def test_a_trained_one_becomes_a_dense_layer():
    torch.manual_seed(0)
    model = SPELLINGS[0]().eval()
    x = model.example()
    ksurgeon.replace_modules(model, "permutation", x)
    with torch.no_grad():
        for factor in model.kpermutation0.matrix.factors:
            factor.add_(0.1 * torch.randn_like(factor))
    expected = model(x)
    ksurgeon.revert(model)
    assert isinstance(model.kpermutation0, torch.nn.Linear)
    torch.testing.assert_close(model(x), expected)
