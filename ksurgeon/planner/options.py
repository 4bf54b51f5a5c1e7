"""What may become of a site, and what each possibility costs and harms."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from ksurgeon.errors import StructureError
from ksurgeon.find.site import Site
from ksurgeon.kmatrix.structures import (
    Kaleidoscope,
    KaleidoscopeLowRank,
    LowRank,
    Monarch,
    MonarchLowRank,
    Structure,
)
from ksurgeon.rules.plan import structure_cost

__all__ = ["FAMILIES", "Option", "SiteOptions", "of_two_radices", "options_for"]

# Shares of the dense parameters that low rank is tried at; the others come with their own sizes.
_SHARES = (0.85, 0.75, 0.65, 0.57, 0.5, 0.44, 0.38, 0.33, 0.28, 0.24, 0.2, 0.16, 0.13, 0.1, 0.07, 0.05)
_BLOCKS = (2, 4, 8)
# Shares of K-matrices and of Monarch matrices with a low-rank path beside them, which gets half of it.
_BESIDE_K, _BESIDE_MONARCH = (0.6, 0.45, 0.32, 0.22), (0.5, 0.3)
_SMALLEST = 256  # entries of a weight below which nothing is to be won


class Option(BaseModel):
    """One possibility for a site; ``structure`` is None for leaving it as it is.

    Attributes:
        parameters, multiplications: with it, bias included; multiplications are per example.
        latency: milliseconds of the site's product, for the batch that was measured; None where it was not.
        error: relative error of the site's output on the calibration data.
        predicted: harm to the model's outputs, predicted.
        measured: harm measured with this site alone replaced.
        beside: predicted harm over that of a low rank of as many parameters; None for low ranks.
        skipped: why it was not tried.
        refused: why it is never chosen under the budget at hand.
    """

    model_config = ConfigDict(extra="forbid")

    structure: Structure | None = None
    parameters: int
    multiplications: int
    latency: float | None = None
    error: float = 0.0
    predicted: float = 0.0
    measured: float | None = None
    beside: float | None = None
    skipped: str | None = None
    refused: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether it can be chosen."""
        return self.refused is None and self.skipped is None


class SiteOptions(BaseModel):
    """All options of a site, leaving it first.

    Attributes:
        ratio: measured over predicted harm, as swaps of this site told; 1 before any.
    """

    model_config = ConfigDict(extra="forbid")

    path: str
    kind: str
    reason: str | None = None
    options: list[Option]
    ratio: float = 1.0

    def harm(self, option: Option) -> float:
        """Harm of an option as far as it is known: measured, or predicted and corrected."""
        return option.measured if option.measured is not None else option.predicted * self.ratio


FAMILIES = ("low_rank", "monarch", "kaleidoscope", "monarch+low_rank", "kaleidoscope+low_rank")


def options_for(site: Site, families: Sequence[str] = FAMILIES) -> SiteOptions:
    """Leaving a site as it is, and all structures that make it smaller, without their harm."""
    leave = Option(parameters=site.parameters, multiplications=site.multiplications)
    found = SiteOptions(path=site.path, kind=site.kind, reason=_reason(site), options=[leave])
    if found.reason is not None:
        return found
    known = {site.weight_parameters}
    for structure in _structures(site):
        if structure.structure not in families:
            continue
        try:
            parameters, multiplications = structure_cost(site, structure)
        except StructureError:
            continue
        size = parameters - site.parameters + site.weight_parameters
        if size >= 0.95 * site.weight_parameters or (isinstance(structure, LowRank) and size in known):
            continue
        known.add(size)
        found.options.append(
            Option(structure=structure, parameters=parameters, multiplications=multiplications)
        )
    return found


def _reason(site: Site) -> str | None:
    if site.reason is not None:
        return site.reason
    if site.kind not in ("linear", "pointwise_conv") or not site.weight_parameters:
        return "no dense weight to be structured"
    return "too small for anything to be won" if site.weight_parameters < _SMALLEST else None


def _structures(site: Site) -> list[Structure]:
    found: list[Structure] = []
    groups = site.groups if site.kind == "pointwise_conv" else 1
    sizes = site.in_features // groups, site.out_features // groups
    ranks = {}
    for share in _SHARES:
        rank = int(share * sizes[0] * sizes[1] / sum(sizes))
        if rank >= 8:
            rank -= rank % 4  # a multiple of what the kernels like
        if rank > 0:
            ranks[rank] = LowRank(rank=rank)
    found += ranks.values()
    found += [Monarch(blocks=blocks) for blocks in _BLOCKS]
    found += [Kaleidoscope(), Kaleidoscope(radix=16), Kaleidoscope(width=2)]
    for share in _BESIDE_MONARCH:
        rank = max(1, int(share / 2 * sizes[0] * sizes[1] / (8 * sum(sizes))))
        found.append(MonarchLowRank(blocks=8, block_rank=rank, share=share))
    for share in _BESIDE_K:
        matrix = of_two_radices(*sizes, share / 2)
        found.append(KaleidoscopeLowRank(radix=matrix.radix if matrix else "auto", share=share))
    return found


def of_two_radices(in_features: int, out_features: int, share: float) -> Kaleidoscope | None:
    """The K-matrix of two radices whose product is the smaller side with the most parameters that are within
    a share of the dense ones, or else with the fewest; None for a side that is no product."""
    size, dense = min(in_features, out_features), in_features * out_features
    pairs = [(first, size // first) for first in range(2, size // 2 + 1) if size % first == 0]
    costs = {
        matrix: matrix.parameters(in_features, out_features) / dense
        for matrix in (Kaleidoscope(radix=pair) for pair in pairs)
    }
    within = {matrix: cost for matrix, cost in costs.items() if cost <= share}
    if within:
        return max(within, key=within.__getitem__)
    return min(costs, key=costs.__getitem__, default=None)
