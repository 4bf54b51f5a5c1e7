"""The recognisers, one line each.

A kind of map inside a forward needs a function that yields a ``Match`` for each it proves; a kind of whole
module needs one that yields a ``Layer`` (or None) for a module.
"""

from collections.abc import Callable, Iterator

from torch import fx, nn

from ksurgeon.find.match import Match
from ksurgeon.find.permutations import find_permutations
from ksurgeon.find.shuffles import find_shuffles
from ksurgeon.find.tracer import Trace
from ksurgeon.find.transforms import find_transforms

__all__ = ["IN_FORWARDS", "InForward", "find_matches"]

InForward = Callable[[nn.Module, Trace, set[str]], Iterator[Match]]
"""Takes the owner, its traced forward, and the paths of its children that only move data."""

IN_FORWARDS: tuple[InForward, ...] = (find_shuffles, find_permutations, find_transforms)


def find_matches(module: nn.Module, trace: Trace, movers: set[str]) -> list[Match]:
    """Maps in a traced forward in the order they run; of two that share a node, the earlier recogniser's."""
    order = {node: position for position, node in enumerate(trace.graph.nodes)}
    taken: set[fx.Node] = set()
    matches = []
    for recognise in IN_FORWARDS:
        for match in recognise(module, trace, movers):
            if taken.isdisjoint(match.region.nodes):
                taken.update(match.region.nodes)
                matches.append(match)
    return sorted(matches, key=lambda match: order[match.region.sink])
