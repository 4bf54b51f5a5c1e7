import pytest
import torch

from ksurgeon.find import Finder
from tests.find.permutation_spellings import DECOYS, INDEX, REFUSED, SPELLINGS, Between
from tests.find.spellings import DECOYS as SHUFFLE_DECOYS
from tests.find.spellings import SPELLINGS as SHUFFLES
from tests.find.spellings import EinsumOfPixels, OtherPermutation


def permutations(model):
    return [site for site in Finder(model, model.example()).sites if site.kind == "permutation"]


@pytest.mark.parametrize("network", SPELLINGS, ids=lambda c: c.__name__)
def test_every_spelling_is_found(network):
    (site,) = permutations(network())
    assert site.reason is None
    assert (site.dim, site.permutation) == (network.dim, tuple(network.permutation.tolist()))


@pytest.mark.parametrize("network", REFUSED, ids=lambda c: c.__name__)
def test_what_is_not_fixed_is_refused(network):
    (site,) = permutations(network())
    assert site.reason


@pytest.mark.parametrize("network", DECOYS, ids=lambda c: c.__name__)
def test_no_decoy_is_found(network):
    assert permutations(network()) == []


@pytest.mark.parametrize("network", SHUFFLES, ids=lambda c: c.__name__)
def test_a_shuffle_is_a_kind_of_its_own(network):
    assert permutations(network()) == []


@pytest.mark.parametrize("network", SHUFFLE_DECOYS, ids=lambda c: c.__name__)
def test_decoys_of_shuffles_reorder_no_channels_unless_they_do(network):
    found = [site for site in permutations(network()) if site.reason is None]
    assert len(found) == (network in (OtherPermutation, EinsumOfPixels))


def test_a_shuffle_followed_by_an_index():
    class Both(Between):
        def reorder(self, x):
            return x.unflatten(2, (3, 4)).transpose(2, 3).flatten(2)[..., self.index]

    model = Both()
    found = [site for site in Finder(model, model.example()).sites if site.kind != "linear"]
    assert [site.kind for site in found] == ["channel_shuffle", "permutation"]
    assert found[1].permutation == tuple(INDEX.tolist())
    x = torch.randn(2, 7, 12)
    shuffled = x[..., list(found[0].permutation)][..., list(found[1].permutation)]
    assert torch.equal(shuffled, model.reorder(x))
