"""Fixed reorderings along one dimension, inside a forward or as a module."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ksurgeon.kinds.channel_shuffle import ChannelShuffle

if TYPE_CHECKING:
    from torch import nn

    from ksurgeon.find import Match
    from ksurgeon.find.tracer import Trace

__all__ = ["Permutation"]


class Permutation(ChannelShuffle):
    """Reorderings that are no channel shuffle."""

    name, title, child = "permutation", "permutation", "kpermutation"

    def matches(self, module: "nn.Module", trace: "Trace", movers: set[str]) -> "Iterator[Match]":
        from ksurgeon.find.permutations import find_permutations

        return find_permutations(module, trace, movers)
