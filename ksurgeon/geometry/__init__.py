"""Permutations that are found from data: which entries of a vector are neighbours, and on which grid."""

from ksurgeon.geometry.arrangement import (
    arrangement_from_moments,
    find_arrangement,
    neighbour_share,
)

__all__ = ["arrangement_from_moments", "find_arrangement", "neighbour_share"]
