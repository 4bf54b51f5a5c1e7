import pytest
import torch

from ksurgeon.find import Finder
from ksurgeon.kmatrix.known import known_matrix
from tests.find.transform_spellings import DECOYS, REFUSED, SPELLINGS, LinearConvolution


def transforms(model):
    return [site for site in Finder(model, model.example()).sites if site.kind == "transform"]


@pytest.mark.parametrize("network", SPELLINGS, ids=lambda c: c.__name__)
def test_every_spelling_is_found(network):
    torch.manual_seed(0)
    (site,) = transforms(network())
    assert site.reason is None
    assert (site.facts["transform"], site.dim) == (network.expected, network.dim)


@pytest.mark.parametrize("network", REFUSED, ids=lambda c: c.__name__)
def test_what_the_input_sizes_is_refused(network):
    found = transforms(network())
    assert found and all(site.reason for site in found)


@pytest.mark.parametrize("network", DECOYS, ids=lambda c: c.__name__)
def test_no_decoy_is_found(network):
    torch.manual_seed(0)
    assert transforms(network()) == []


def test_a_linear_convolution_is_no_circular_one():
    padded, inverse = transforms(LinearConvolution())
    assert padded.reason == "it pads or crops what it takes"
    assert inverse.reason is None and inverse.facts["transform"] == "irdft"


def test_matrices_that_are_none():
    dft = torch.fft.fft(torch.eye(12, dtype=torch.complex64))
    assert known_matrix(dft)["transform"] == "dft"
    assert known_matrix(0.5 * dft.conj()) == pytest.approx({"transform": "idft", "n": 12, "scale": 6.0})
    assert known_matrix(dft[:7])["transform"] == "rdft"
    for matrix in (
        dft[:6],
        1j * dft,
        dft.roll(1, 0),
        dft[:2, :2],
        torch.zeros(12, 12, dtype=torch.complex64),
    ):
        assert known_matrix(matrix) is None
