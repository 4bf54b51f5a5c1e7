"""What comes before the training of the whole: single layers, and statistics; kept where it is better."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import nn

from ksurgeon.calibrate.preprocess import Batch
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.rotations import Rotations
from ksurgeon.surgery.record import record_of
from ksurgeon.train.evaluate import Evaluator
from ksurgeon.train.keeper import Keeper
from ksurgeon.train.layerwise import (
    SiteResult,
    collect_rows,
    descend,
    layer_pairs,
    least_squares,
    train_layers,
)
from ksurgeon.train.log import Listener
from ksurgeon.train.norms import batch_norms, carry_batch_norms, estimate_batch_norms
from ksurgeon.train.processes import agreed
from ksurgeon.train.settings import Settings

__all__ = ["Phases"]

_SHARE = 1 / 8  # of the training's time, for each of these phases and for the inputs that they need
_LATE = 1 / 2  # of the time, after which none of them begins
_BATCHES = 32  # that statistics of inputs are estimated on
_PAIRED = 8  # on which they are compared with those of the teacher, which takes fewer
_STEPS = 100  # of a layer


@dataclass
class Phases:
    """The phases of one training.

    Attributes:
        sites: paths of the only layers that are trained; all if None.
    """

    model: nn.Module
    teacher: nn.Module | None
    keeper: Keeper
    evaluator: Evaluator
    settings: Settings
    listener: Listener
    sites: Collection[str] | None = None

    def train_layers(self) -> list[SiteResult]:
        """Bring every replaced layer nearer to its original; what became of each where that was kept."""
        if self.teacher is None:
            return []
        pairs = layer_pairs(self.model, self.teacher)
        pairs = {path: pair for path, pair in pairs.items() if self.sites is None or path in self.sites}
        left = self._fitted_to_data()
        steps, squares = self.settings.layerwise, self.settings.least_squares
        steps_by_default = {path: pair for path, pair in pairs.items() if path not in left}
        to_fit = steps_by_default if squares is None else pairs if squares else {}
        computed = {p for p, (layer, _) in pairs.items() if _is_computed(layer)}
        to_fit = {path: pair for path, pair in to_fit.items() if path not in computed}
        to_train = steps_by_default if steps is None else pairs if steps else {}
        wanted = {path: pair for path, pair in pairs.items() if path in to_fit or path in to_train}
        if not wanted or self._is_late("layer by layer"):
            return []
        originals = {path: original for path, (_, original) in wanted.items()}
        rows = collect_rows(self.teacher, originals, self.batches(), self.settings)
        gradient = partial(descend, steps=_STEPS if steps is None else steps, seed=self.settings.seed)
        kept: dict[str, SiteResult] = {}
        for name, chosen, change in (
            ("least squares", to_fit, least_squares),
            ("layer by layer", to_train, gradient),
        ):
            if not chosen:
                continue
            results: list[SiteResult] = []
            bring = partial(train_layers, name, chosen, rows, change, results, self.listener, self._limit())
            if self.keeper.attempt(name, bring):
                kept |= {r.path: replace(r, before=kept.get(r.path, r).before) for r in results}
        return list(kept.values())

    def take_statistics(self) -> None:
        """Statistics of batch normalisation as the surgery changed them, or those of the data."""
        if not batch_norms(self.model):
            return
        new_anyway = self.settings.batch_norm == "train" and self.settings.final == "last"
        if new_anyway and self.keeper.best is not None and self.keeper.best.is_finite():
            return
        if self._is_late("statistics"):
            return
        if self.settings.batch_norm == "train" or self.teacher is None:
            self.keeper.attempt("statistics", self.estimate)
        elif self.sites is not None or not self._keeps_statistics():
            carry = partial(carry_batch_norms, self.model, self.teacher)
            self.keeper.attempt("statistics", lambda: carry(self.batches(_PAIRED)))

    def estimate(self) -> None:
        """Plain averages over training batches as statistics."""
        estimate_batch_norms(self.model, self.batches())

    def batches(self, count: int = _BATCHES) -> list[Batch]:
        """So many of the first training batches, or what there is time to run."""
        from accelerate.utils import send_to_device

        data, evaluator = self.evaluator.data, self.evaluator
        if evaluator.clock.seconds is not None:
            mine = len(evaluator.numbers) / evaluator.accelerator.num_processes
            a_batch = max(evaluator.cost, 1e-9) / mine * data.batch
            count = max(1, min(count, int(_SHARE * evaluator.clock.seconds / a_batch)))
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(self.settings.seed))
        chosen = torch.tensor(data.train)[order[: count * data.batch]].tolist()
        device = evaluator.accelerator.device
        return [send_to_device(batch, device) for batch in islice(data.batches(chosen), count)]

    def _is_late(self, name: str) -> bool:
        """Whether what is left of the time is for the training of the whole."""
        clock = self.evaluator.clock
        if clock.seconds is None or agreed(self.evaluator.accelerator, clock.elapsed) < _LATE * clock.seconds:
            return False
        self.listener.note(f"{name}: left out, as {_LATE:.0%} of the time is over")
        return True

    def _limit(self) -> Callable[[], bool]:
        """Tells when a phase that begins now has had its share of the time, all processes alike."""
        clock = self.evaluator.clock
        begin = clock.elapsed
        if clock.seconds is None:
            return lambda: False
        most = _SHARE * clock.seconds
        return lambda: agreed(self.evaluator.accelerator, clock.elapsed - begin) > most

    def _keeps_statistics(self) -> bool:
        """Whether a training has made the statistics, or a fit to data left what they are of as it was."""
        record = record_of(self.model)
        fitted = record is not None and all(operation.calibrated for operation in record.operations)
        return fitted or self._is_trained()

    def _fitted_to_data(self) -> set[str]:
        """Paths of layers that surgery with data or a training has made."""
        record = record_of(self.model)
        if record is None:
            return set()
        trained = self._is_trained() and self.sites is None
        return {operation.path for operation in record.operations if operation.calibrated or trained}

    def _is_trained(self) -> bool:
        record = record_of(self.model)
        return record is not None and bool(record.trainings)


def _is_computed(layer: KLinear | KPointwiseConv) -> bool:
    return isinstance(getattr(layer.matrix, "factors", None), Rotations)
