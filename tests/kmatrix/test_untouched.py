"""Transforms whose factors nobody has trained run as torch.fft, and as the chain from then on."""

import copy

import pytest
import torch

from ksurgeon.kmatrix.transform import KTransform

KINDS = {"dft": torch.complex64, "idft": torch.complex64, "rdft": torch.float32, "irdft": torch.complex64}


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_the_chain(kind, scale):
    layer = KTransform(kind, 12, 1, scale=scale)
    x = torch.randn(3, layer.in_features, 5, dtype=KINDS[kind])
    by_chain = layer(x)
    assert by_chain.requires_grad  # a gradient of the factors is wanted
    with torch.no_grad():
        assert layer.is_untouched(x)
        torch.testing.assert_close(layer(x), by_chain)
        layer.factors[0].data.mul_(2)  # no version counter tells
        assert not layer.is_untouched(x)
        torch.testing.assert_close(layer(x), 2 * by_chain)


def test_where_it_does_not_apply():
    layer, x = KTransform("rdft", 12), torch.randn(3, 12)
    assert not layer.is_untouched(x)
    with torch.no_grad():
        assert layer.is_untouched(x)
        assert not layer.is_untouched(x.double()) and layer(x.double()).dtype == torch.complex64
        assert not KTransform("dct", 12).is_untouched(x)
        assert not KTransform("rdft", 12, start="random").is_untouched(x)
        assert copy.deepcopy(layer).is_untouched(x)
    exported = torch.export.export(layer, (x,))
    torch.testing.assert_close(exported.module()(x), layer(x))
    assert not any("fft" in str(node.target) for node in exported.graph.nodes)
