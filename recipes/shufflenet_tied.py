"""ShuffleNet v1 with tied K-matrices, an arm of the recipe shufflenet_classes."""

from pathlib import Path
from typing import Any

from torch import nn

from ksurgeon import KChannelShuffle
from ksurgeon.errors import RecipeError
from ksurgeon.kmatrix.structures import Kaleidoscope
from ksurgeon.models.functions import find_function


def net(**options: Any) -> nn.Module:
    """The net of ``shufflenet.py`` with K-matrices in both places, one for each place and size."""
    model = find_function("shufflenet.py:net", RecipeError, Path(__file__).parent)(second="none", **options)
    tied: dict[tuple[str, int], KChannelShuffle] = {}
    for unit in model.modules():
        if not hasattr(unit, "mix0"):
            continue
        for name, channels in (("mix0", unit.conv1.in_channels), ("mix1", unit.depthwise.in_channels)):
            if (name, channels) not in tied:
                structure = Kaleidoscope(parametrization="orthogonal")
                tied[name, channels] = KChannelShuffle(channels, 1, structure=structure, start="orthogonal")
            setattr(unit, name, tied[name, channels])
    return model
