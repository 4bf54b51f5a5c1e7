"""A dense factor whose weight is stored transposed."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from ksurgeon.patterns.pattern import Pattern
from ksurgeon.patterns.rotated import Computed

__all__ = ["Transposed"]


class Transposed(Computed, Sequence[Tensor]):
    """The one factor ``(1, 1, out, in)`` of a weight ``(in, out)``, a view of it whenever it is looked at.

    Kernels keep what they make of it as long as ``sources``, the weight, stays what it is.
    """

    __slots__ = ("patterns", "sources")

    def __init__(self, weight: Tensor) -> None:
        ins, outs = weight.shape
        self.sources, self.patterns = (weight,), (Pattern(1, outs, ins, 1),)

    def __iter__(self) -> Iterator[Tensor]:
        yield self[0]

    def __getitem__(self, number: int) -> Tensor:  # type: ignore[override]
        return self.sources[number].T[None, None]

    def __len__(self) -> int:
        return 1
