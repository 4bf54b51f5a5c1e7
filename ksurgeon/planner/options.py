"""What may become of a site, and what each possibility costs and harms."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from ksurgeon.errors import StructureError
from ksurgeon.find.site import Site
from ksurgeon.kmatrix.structures import (
    Kaleidoscope,
    LowRank,
    Monarch,
    Structure,
    Sum,
    registered,
)
from ksurgeon.rules.plan import structure_cost
from ksurgeon.site_kinds import site_kind

__all__ = ["FAMILIES", "Option", "SiteOptions", "families", "options_for"]

# Shares of the dense parameters that low rank is tried at; the others come with their own sizes.
_SHARES = (0.85, 0.75, 0.65, 0.57, 0.5, 0.44, 0.38, 0.33, 0.28, 0.24, 0.2, 0.16, 0.13, 0.1, 0.07, 0.05)
_BLOCKS = (2, 4, 8)
# Shares of a Monarch matrix with a low-rank path, and into how many parts of the dense size the matrix goes.
_PATHS = ((0.5, 8), (0.25, 16))
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
        quick: whether the figures are those of a quick fit, far from a low rank's, which a plan would refine.
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
    quick: bool = False
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
"""Names of our structures that are tried."""


def families() -> tuple[str, ...]:
    """``FAMILIES``, and the structures of other packages that have candidates."""
    return (*FAMILIES, *(name for name, cls in registered().items() if "candidates" in vars(cls)))


def options_for(site: Site, structures: Sequence[str] = FAMILIES) -> SiteOptions:
    """Leaving a site as it is, and all structures that make it smaller, without their harm."""
    leave = Option(parameters=site.parameters, multiplications=site.multiplications)
    found = SiteOptions(path=site.path, kind=site.kind, reason=_reason(site), options=[leave])
    if found.reason is not None:
        return found
    known = {site.weight_parameters}
    for structure in _candidates(site):
        if structure.structure in families() and structure.structure not in structures:
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
    if not site.weight_parameters or not _candidates(site):
        return "no dense weight to be structured"
    return "too small for anything to be won" if site.weight_parameters < _SMALLEST else None


def _candidates(site: Site) -> Sequence[Structure]:
    own = site_kind(site.kind).candidates(site)
    return _structures(site) if own is None else own


def _structures(site: Site) -> list[Structure]:
    found: list[Structure] = []
    sizes = site.in_features // site.blocks, site.out_features // site.blocks
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
    for share, part in _PATHS:
        found.append(Sum(Monarch(4, block_rank=_rank(sizes, part)), share=share))
    found += [Sum(Kaleidoscope(), share=share) for share in (0.5, 0.25)]
    for cls in registered().values():
        found += cls.candidates(*sizes)
    return found


def _rank(sizes: tuple[int, int], part: int) -> int:
    """Rank of the blocks of a Monarch matrix of 4 × 4 blocks with 1/part of the dense parameters."""
    return max(1, sizes[0] * sizes[1] // (part * 4 * sum(sizes)))
