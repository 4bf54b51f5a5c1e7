"""The structures a rule can ask for: what ``with = { structure = … }`` holds, and what they give."""

from ksurgeon.kmatrix.structures.base import Structure
from ksurgeon.kmatrix.structures.chains import Butterfly, Chain, Dense, GroupedKaleidoscope, Kaleidoscope
from ksurgeon.kmatrix.structures.monarch import Monarch
from ksurgeon.kmatrix.structures.registry import register_structure, registered
from ksurgeon.kmatrix.structures.sums import LowRank, Sum

__all__ = [
    "Butterfly",
    "Chain",
    "Dense",
    "GroupedKaleidoscope",
    "Kaleidoscope",
    "LowRank",
    "Monarch",
    "Structure",
    "Sum",
    "register_structure",
    "registered",
]
