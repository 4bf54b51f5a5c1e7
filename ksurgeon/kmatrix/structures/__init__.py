"""The structures a rule can ask for: what ``with = { structure = … }`` holds, and the chains they give."""

from typing import Annotated

from pydantic import Field

from ksurgeon.kmatrix.structures.base import LowRank
from ksurgeon.kmatrix.structures.chains import Butterfly, Chain, Dense, GroupedKaleidoscope, Kaleidoscope
from ksurgeon.kmatrix.structures.monarch import Monarch
from ksurgeon.kmatrix.structures.sums import ChainLowRank, KaleidoscopeLowRank, MonarchLowRank, Sum

__all__ = [
    "Butterfly",
    "Chain",
    "ChainLowRank",
    "Dense",
    "GroupedKaleidoscope",
    "Kaleidoscope",
    "KaleidoscopeLowRank",
    "LowRank",
    "Monarch",
    "MonarchLowRank",
    "Structure",
    "Sum",
]

Structure = Annotated[
    Kaleidoscope
    | GroupedKaleidoscope
    | Monarch
    | LowRank
    | KaleidoscopeLowRank
    | MonarchLowRank
    | ChainLowRank
    | Chain
    | Butterfly
    | Dense,
    Field(discriminator="structure"),
]
