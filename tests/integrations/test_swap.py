"""Factors that are exchanged in place, by hand or as conversions of modules do when they are asked to."""

import copy
import weakref

import pytest
import torch

import ksurgeon
from ksurgeon.kmatrix.structures import Kaleidoscope, Sum


def layer():
    return ksurgeon.KLinear(96, 96, structure=Sum(Kaleidoscope(), share=0.8))


def used(module, x):
    """A module that has served, few rows and many, and been trained."""
    with torch.no_grad():
        module(x[:1]), module(x)
    module(x).sum().backward()
    module.zero_grad()
    return module


def check(module, x):
    with torch.no_grad():
        for rows in (x[:1], x):
            torch.testing.assert_close(
                module(rows), rows @ module.weight.T + module.bias, rtol=1e-4, atol=1e-4
            )


@pytest.fixture
def swapping():
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


def test_swapped_by_hand():
    x = torch.randn(40, 96)
    one, other = used(layer(), x), used(layer(), x)
    with torch.no_grad():
        expected = other(x)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.utils.swap_tensors(mine, theirs)
    check(one, x)
    check(other, x)
    with torch.no_grad():
        torch.testing.assert_close(one(x), expected)


def test_conversions_that_swap(swapping):
    x = torch.randn(40, 96)
    module = used(layer(), x)
    before = list(module.parameters())
    module.double()
    check(module, x.double())
    used(module, x.double()).float()
    check(module, x)
    used(module, x).load_state_dict(copy.deepcopy(layer().state_dict()))
    check(module, x)
    assert all(new is old for new, old in zip(module.parameters(), before, strict=True))


def test_what_somebody_else_refers_to_is_refused_as_ever():
    one, other = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.zeros(2))
    reference = weakref.ref(one, lambda _: None)
    with pytest.raises(RuntimeError, match="weakref"):
        torch.utils.swap_tensors(one, other)
    assert reference() is one
