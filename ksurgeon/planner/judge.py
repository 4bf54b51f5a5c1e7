"""Measured harm: the model on held-out batches, with some of its sites replaced."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from math import isfinite
from statistics import fmean, stdev

import torch
from torch import Tensor, nn

from ksurgeon.calibrate import Calibration, Harm
from ksurgeon.calibrate.rows import row_mask
from ksurgeon.errors import InputError
from ksurgeon.find import Finder, Site
from ksurgeon.find.inputs import ExampleInputs, call_model
from ksurgeon.find.unchanged import example_run
from ksurgeon.kmatrix.structures import Structure
from ksurgeon.planner.predict import sweeps_for
from ksurgeon.site_kinds import site_kind
from ksurgeon.surgery.operate import prepare, swap_all, undo_all

__all__ = ["Judge", "Metric"]

_FEWEST, _CERTAIN = 3, 0.05  # batches, and the standard error over the mean, at which a rough measure ends

Metric = Callable[[nn.Module], float]
"""A figure of merit of a model, the higher the better."""


class Judge:
    """Compares a model with what it was when the judge was made.

    Args:
        finder: of the model.
        calibration: what replacements are fitted to.
        harm: what is measured on the batches.
        batches: held-out inputs.
        metric: measured in the place of ``harm``: what it loses.

    Raises:
        InputError: outputs, or a figure of merit, that are NaN or infinite.
    """

    def __init__(
        self,
        finder: Finder,
        calibration: Calibration,
        harm: Harm,
        batches: Sequence[ExampleInputs],
        metric: Metric | None = None,
    ) -> None:
        self._finder, self._calibration, self._harm, self._metric = finder, calibration, harm, metric
        self._batches = batches
        self._before: list[list[Tensor]] = []
        self._figure = 0.0
        self._built: dict[str, tuple[Structure, nn.Module]] = {}
        model = finder.model
        with example_run(model):
            if metric is not None:
                self._figure = float(metric(model))
                if not isfinite(self._figure):
                    raise InputError(f"the metric of the unmodified model is {self._figure}")
            else:
                self._before = [self._reference(number, batch) for number, batch in enumerate(batches, 1)]

    def _reference(self, number: int, batch: ExampleInputs) -> list[Tensor]:
        found = [t.clone() for t in self._harm.chosen(call_model(self._finder.model, batch))]
        if not all(bool(t.isfinite().all()) for t in found):
            raise InputError(
                f"the model gives NaN or Inf on this data, in the outputs of held-out batch {number}; leave "
                "the examples out, or use weights that work on them"
            )
        return found

    def harm(self, roughly: bool = False) -> float:
        """Harm of the model as it is now.

        Args:
            roughly: whether to leave it at as many batches as make its standard error a twentieth of it.
        """
        model, found = self._finder.model, list[tuple[float, float]]()
        with example_run(model):
            if self._metric is not None:
                return self._figure - float(self._metric(model))
            for batch, before in zip(self._batches, self._before, strict=True):
                found.append(self._harm.change(before, call_model(model, batch), row_mask(batch)))
                if roughly and _is_certain([moved / size for moved, size in found if size]):
                    break
        total, over = sum(moved for moved, _ in found), sum(size for _, size in found)
        return total / over if over else 0.0

    def of(self, chosen: Mapping[Site, Structure], roughly: bool = False) -> float:
        """Harm with these sites replaced; they are put back."""
        with self.replaced(chosen):
            return self.harm(roughly)

    @contextmanager
    def replaced(self, chosen: Mapping[Site, Structure]) -> Iterator[nn.Module]:
        """Inside, these sites are replaced by structures fitted to them."""
        model = self._finder.model
        with torch.random.fork_rng(devices=[]):
            built = [(site, self._build(site, structure)) for site, structure in chosen.items()]
        swaps, _ = prepare(model, self._finder, built)
        swap_all(swaps)
        try:
            yield model
        finally:
            undo_all(swaps)

    def _build(self, site: Site, structure: Structure) -> nn.Module:
        """A replacement; the last one of every site is kept, to stand beside those of others later."""
        last = self._built.get(site.path)
        if last is None or last[0] != structure:
            known = self._calibration.sites.get(site.path)
            known = known.copy(sweeps_for(site.weight_parameters)) if known is not None else None
            model = self._finder.model
            new, _ = site_kind(site.kind).make(model, replace(site, parts=1), structure, "fit", known)
            last = self._built[site.path] = structure, new
        return deepcopy(last[1])


def _is_certain(values: Sequence[float]) -> bool:
    if len(values) < _FEWEST or not all(map(isfinite, values)):
        return False
    return stdev(values) <= _CERTAIN * len(values) ** 0.5 * abs(fmean(values))
