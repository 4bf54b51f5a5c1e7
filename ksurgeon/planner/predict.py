"""Harm of every option of a site, predicted from its calibration."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import geometric_mean

import torch
from torch import Tensor, nn

from ksurgeon.calibrate import SiteMoments
from ksurgeon.find import Site
from ksurgeon.fit.two_sided import TwoSided
from ksurgeon.kmatrix.structures import LowRank, Structure
from ksurgeon.planner.options import Option, SiteOptions
from ksurgeon.site_kinds import site_kind
from ksurgeon.surgery.build import dense_blocks, site_weight
from ksurgeon.surgery.fitting import fitted_blocks

__all__ = ["Tried", "low_rank_curve", "predict", "sweeps_for", "tried_at"]

_SWEEPS, _FEW, _LARGE = 6, 2, 2**18  # of a fit that is worth refining, fewer for so many entries
# Times the harm of a low rank of as many parameters that refining has not made up for yet, and at which a
# structure counts as beaten.
_HOPELESS, _BEATEN = 3.0, 1.2


@dataclass(frozen=True)
class Tried:
    """What fits at the first sites of a shape tell of the others.

    Attributes:
        beside: harm over that of a low rank of as many parameters, by structure, at each of those sites.
        sites: at how many sites of that shape structures are tried.
        beaten: whether structures that low rank clearly beat at all of them are left out at the others.
    """

    beside: Mapping[str, Sequence[float]]
    sites: int
    beaten: bool = True

    def skipped(self, structure: Structure) -> str | None:
        """Why the structure is not tried, if it is not."""
        ratios = self.beside.get(str(structure), ())
        enough = _BEATEN if len(ratios) == self.sites else _HOPELESS
        if not self.beaten or not ratios or min(ratios) <= enough:
            return None
        return (
            f"not tried: at {len(ratios)} site{'s' * (len(ratios) > 1)} of this shape a low rank of its size "
            f"harmed {min(ratios):.1f} times less"
        )

    def expected(self, structure: Structure) -> float | None:
        """Harm over that of a low rank to reckon with, or None where a fit has to tell."""
        ratios = self.beside.get(str(structure), ())
        return geometric_mean(ratios) if len(ratios) == self.sites and min(ratios) > 0 else None


def predict(
    model: nn.Module,
    site: Site,
    options: SiteOptions,
    known: SiteMoments | None,
    tried: Tried,
) -> None:
    """Fill in error and predicted harm of all options of a site.

    Low ranks are told from one decomposition, exactly. Other structures are fitted; one whose factorisation
    harms much more than a low rank with as many parameters keeps the figures of that and is not refined.
    Of a kind that is not dense the error of the weight has to do, until swaps tell more.
    Those that were ``tried`` at sites of the same shape are expected to harm as many times what a low rank
    does as there.
    """
    kind = site_kind(site.kind)
    if known is None or not kind.is_dense:
        for option in options.options[1:]:
            assert option.structure is not None
            error = kind.make(model, replace(site, parts=1), option.structure, "fit")[1]
            option.error, option.predicted = error or 0.0, (error or 0.0) ** 2
        return
    weight = dense_blocks(site_weight(model, site), site.blocks).to(known.moment.device)
    known = known.copy()
    energy = _energy(weight, known)
    errors, harms = low_rank_curve(weight, known)
    for option in options.options[1:]:
        structure = option.structure
        assert structure is not None
        option.skipped = tried.skipped(structure)
        if option.skipped is not None:
            continue
        if isinstance(structure, LowRank):
            assert structure.rank is not None
            option.error, option.predicted = float(errors[structure.rank]), float(harms[structure.rank])
            continue
        peer = _rank_of_equal_cost(weight, option, options)
        ratio = tried.expected(structure)
        if ratio is not None:
            option.error, option.predicted = float(errors[peer]) * ratio**0.5, float(harms[peer]) * ratio
            continue
        for known.sweeps in (0, _SWEEPS) if weight.numel() <= _LARGE else (_FEW,):
            change = fitted_blocks(model, site, structure, known) - weight
            option.error = (_energy(change, known) / energy) ** 0.5 if energy else 0.0
            option.predicted = harm_of(known, change)
            option.beside = option.predicted / max(float(harms[peer]), 1e-300)
            option.quick = option.beside > _HOPELESS
            if option.quick:
                break


def tried_at(site: Site, before: Iterable[tuple[Site, SiteOptions]], beaten: bool = True) -> Tried:
    """What the first two sites of this site's shape tell, or for a large one the first."""
    sites = 2 if site.weight_parameters <= _LARGE else 1
    alike = [
        options
        for other, options in before
        if (other.kind, other.in_features, other.out_features, other.groups)
        == (site.kind, site.in_features, site.out_features, site.groups)
    ][:sites]
    found: dict[str, list[float]] = {}
    for options in alike:
        for option in options.options:
            if option.beside is not None:
                found.setdefault(str(option.structure), []).append(option.beside)
    return Tried(found, sites, beaten)


def sweeps_for(weights: int) -> int:
    """The most sweeps of a fit of so many weights while a plan is looked for."""
    return _SWEEPS if weights <= _LARGE else _FEW


def harm_of(known: SiteMoments, change: Tensor) -> float:
    """Predicted harm; where no gradient reaches the site, the energy of the change of its output."""
    harm = known.harm_of(change)
    return _energy(change, known) if harm is None else harm


@torch.no_grad()
def low_rank_curve(weight: Tensor, known: SiteMoments) -> tuple[Tensor, Tensor]:
    """Relative error of the output, and predicted harm, of the best low rank of each rank from 0 on.

    Both have one entry more than the smaller side of the weight's blocks ``(groups, out, in)``. The best are
    those that ``fit_site`` gives, in every group the same rank.
    """
    terms = TwoSided.of(weight, known.root, known.slopes)
    energies = terms.errors()
    errors = (energies / energies[0].clamp(min=1e-300)).sqrt()
    if known.gradient is None:
        return errors, energies
    return errors, known.weight * terms.errors(known.gradient)


def _energy(change: Tensor, known: SiteMoments) -> float:
    """``E‖Δ x‖²``."""
    return float((change.float() @ known.root.float()).double().square().sum())


def _rank_of_equal_cost(weight: Tensor, option: Option, options: SiteOptions) -> int:
    """The rank that costs as many parameters as the option."""
    groups, rows, columns = weight.shape
    own = option.parameters - options.options[0].parameters + weight.numel()
    return min(own // (groups * (rows + columns)), rows, columns)
