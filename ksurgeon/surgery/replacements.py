"""Build what takes the sites' places: as a plan says, and where there are data, to fit what the sites do."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ksurgeon.calibrate import Batches, SiteMoments, calibrate, harm_for
from ksurgeon.calibrate.harm import HarmName, is_harm
from ksurgeon.calibrate.lockstep import can_compensate, require_greenlet
from ksurgeon.errors import DataError
from ksurgeon.find import Site
from ksurgeon.find.inputs import call_model
from ksurgeon.find.unchanged import example_run
from ksurgeon.geometry import arrangement_from_moments
from ksurgeon.rules.plan import Decision
from ksurgeon.site_kinds import site_kind
from ksurgeon.surgery.compensate import compensating

__all__ = ["Built", "Progress", "build_replacements"]

Progress = Callable[[int, int, str], None]
"""Called with sites done, sites in all, and the path of the site that is being worked on."""


@dataclass(frozen=True)
class Built:
    """A replacement.

    Attributes:
        error: relative, of its weight where there is one.
        seconds: that it took.
        calibrated: whether it was fitted to data.
        permutation: of the map that it replaces, or that it starts as where it is inserted.
    """

    module: nn.Module
    error: float | None
    seconds: float
    calibrated: bool
    permutation: tuple[int, ...] | None = None


def build_replacements(
    model: nn.Module,
    pairs: Sequence[tuple[Decision, Site]],
    *,
    batches: Batches | None = None,
    compensate: bool = True,
    harm: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Built]:
    """Build the replacement of every site; the model is not changed.

    Args:
        model: that has the sites.
        pairs: decisions that replace, and their sites.
        batches: inputs to fit to; without any, the weights alone are fitted, and nothing can start from
            geometry.
        compensate: whether layers are fitted front to back, each to the inputs that the replacements before
            it give (see ``compensating``).
        harm: what a plan keeps small, and so do the fits if it is one of ``calibrate.harm``.
        seed: of random starting values, and of rows drawn.
        progress: called before each site and once at the end.

    Raises:
        DataError: a start from geometry without data, or with data that tell none.
        InputError: the model takes or gives NaN or infinite entries on the batches.
        SurgeryError: a changed model calls its layers in another order, or greenlet is not installed.
    """
    made: dict[Site, Built] = {}
    decisions = {site: decision for decision, site in pairs}

    def build(site: Site, known: SiteMoments | None) -> nn.Module:
        begin, decision = time.perf_counter(), decisions[site]
        assert decision.structure is not None and decision.start is not None
        planned = replace(site, parts=decision.parts)
        if decision.start == "geometry":
            planned = replace(planned, permutation=_arrangement(site, decision.grid, known))
        new, error = site_kind(site.kind).make(model, planned, decision.structure, decision.start, known)
        calibrated = known is not None and decision.start == "fit"
        made[site] = Built(new, error, time.perf_counter() - begin, calibrated, planned.permutation)
        return new

    def tell(site: Site | None) -> None:
        if progress is not None:
            progress(len(made), len(pairs), site.path if site is not None else "")

    arranged = [site for decision, site in pairs if decision.start == "geometry"]
    if arranged and batches is None:
        raise DataError(
            f'start = "geometry" at {arranged[0].path} needs data that tell which entries are neighbours: '
            "give convert data, the command --data, or a recipe [calibrate]"
        )
    devices = [p.device.index for p in model.parameters() if p.device.type == "cuda"]
    with torch.random.fork_rng(devices=sorted(set(devices))):
        torch.manual_seed(seed)
        known: dict[str, SiteMoments] = {}
        fitted = [site for decision, site in pairs if decision.start == "fit"]
        if batches is not None and fitted:
            if compensate:
                require_greenlet()
            with example_run(model):
                outputs = call_model(model, batches.fit[0])
            name: HarmName = harm if is_harm(harm) else "auto"
            known = calibrate(
                model, fitted, batches.fit, harm=harm_for(name, model, outputs), seed=seed
            ).sites
            if compensate:
                able = [site for site in fitted if can_compensate(site)]
                for site in compensating(model, able, batches.fit, known, build, seed):
                    tell(site)
        if batches is not None and arranged:
            largest = max(site.in_features for site in arranged)
            known |= calibrate(model, arranged, batches.fit, largest=largest, seed=seed).sites
        for _, site in pairs:
            if site not in made:
                tell(site)
                build(site, known.get(site.path))
        tell(None)
    return [made[site] for _, site in pairs]


def _arrangement(site: Site, grid: Sequence[int], known: SiteMoments | None) -> tuple[int, ...]:
    """The permutation that puts what reaches a place on a grid, or on a line."""
    if known is None:
        raise DataError(f"no example reaches {site.path}; give data that do")
    shape = tuple(grid) or (site.in_features,)
    try:
        found = arrangement_from_moments(known.moment[0], known.mean, known.rows, shape)
    except DataError as error:
        raise DataError(f"at {site.path}: {error}") from error
    return tuple(found.tolist())
