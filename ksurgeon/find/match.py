"""What a recogniser of maps inside a ``forward`` gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ksurgeon.find.movement import Region

__all__ = ["Match"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Match:
    """A map proved in a traced forward: the region turns its source into its sink, and is read nowhere else.

    Attributes:
        kind: kind of the site that it is.
        region: the nodes; one tensor goes in, one comes out.
        in_features, out_features: entries of the vectors mapped.
        dim: dimension of the source along which the map acts.
        permutation: of a reordering, ``y[i] = x[permutation[i]]``.
        groups: groups of the map.
        facts: plain data that the kind needs to build its replacement (JSON can hold it).
        reason: why it cannot be replaced; None if it can.
    """

    kind: str
    region: Region
    in_features: int
    out_features: int
    dim: int
    permutation: tuple[int, ...] | None = None
    groups: int = 1
    facts: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None

    def same_map(self, other: "Match") -> bool:
        """Whether both do the same to what they take."""
        return (self.kind, self.dim, self.permutation, self.in_features, self.out_features, self.facts) == (
            other.kind, other.dim, other.permutation, other.in_features, other.out_features, other.facts,
        )  # fmt: skip
