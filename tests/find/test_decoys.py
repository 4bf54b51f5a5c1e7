import pytest
import torch

from ksurgeon.find import Finder
from tests.find.decoys import NAMED

LAYERS = ("linear", "pointwise_conv")


def test_there_are_forty_by_name():
    assert len(NAMED) >= 40


@pytest.mark.parametrize("name", NAMED)
def test_no_recogniser_finds_it(name):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    finder = Finder(NAMED[name](), x)
    assert finder.failures == {}
    assert [
        (site.kind, site.permutation, site.reason) for site in finder.sites if site.kind not in LAYERS
    ] == []
