"""Held-out examples: the loss, and metrics of teacher and student side by side, in a tenth of the time."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite

import torch
from torch import Tensor

from ksurgeon.calibrate.preprocess import Batch
from ksurgeon.find.inputs import evaluating
from ksurgeon.train.checkpoint import random_state, seed_all, set_random_state
from ksurgeon.train.clock import Clock
from ksurgeon.train.data import Data
from ksurgeon.train.log import Evaluation
from ksurgeon.train.metrics import agreement, with_labels
from ksurgeon.train.passes import Passes

__all__ = ["Evaluator"]

Metrics = dict[str, float]

_SHARE = 0.1  # of the training's time that all evaluations may take
_FEWEST = 6  # evaluations that are to fit into it
_LEAST = 32  # examples, whatever they cost
_PROBE = 8  # examples that tell what one costs
_PRICE = 0.5  # time for an example that is evaluated, of that for one that is trained on, at most


class Evaluator:
    """Evaluates the student of ``passes``; every process takes its share of the examples.

    All evaluations are of the same examples, as many of the held-out ones as leave time for ``_FEWEST`` of
    them. Where the training's steps are limited, the time is counted in examples, so that it is repeatable.
    Without held-out examples they are some of those that are trained on.

    Args:
        clock: of the training.

    Attributes:
        numbers: the examples.
        scales: what each loss term is divided by.
        cost: seconds of the last evaluation.
        spent: seconds of all, those before a resumption included.
        done: number of evaluations.
    """

    def __init__(self, passes: Passes, data: Data, clock: Clock) -> None:
        self.passes, self.data, self.clock = passes, data, clock
        self.accelerator = passes.accelerator
        self.numbers: list[int] = []
        self.scales: dict[str, float] = {}
        self.cost = self.spent = 0.0
        self.done = 0

    def sample(self) -> None:
        """Choose the examples; the model must have run before, for the first run may take longer."""
        everything = self.data.held_out or self.data.train
        generator = torch.Generator().manual_seed(self.data.settings.seed)
        order = torch.tensor(everything)[torch.randperm(len(everything), generator=generator)].tolist()
        count = len(order) if self.data.held_out else min(len(order), self.data.settings.held_out_most)
        if self.clock.total is not None:
            count = min(count, int(self._allowed(self.clock.total) / _FEWEST))
        if self.clock.seconds is not None:
            few = order[:_PROBE]
            self._measure(few)
            affordable = _SHARE / _FEWEST * self.clock.seconds / max(self.cost, 1e-9) * len(few)
            count = min(count, int(affordable))
        self.numbers = sorted(order[: max(count, _LEAST)])

    def take_all(self) -> None:
        """From now on evaluate all held-out examples, whatever time that takes."""
        self.numbers = self.data.held_out or self.numbers

    def set_scales(self) -> None:
        """Divide loss terms by what they are now, on the whole first batch."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        first = next(self.data.training_batches(0, rank, processes))
        with evaluating(self.passes.objective):
            self.scales = self.passes.scales(first, self.data.settings.balance)

    def has_scales(self) -> bool:
        """Whether all of them are numbers that loss terms can be divided by."""
        return all(map(isfinite, self.scales.values()))

    def affordable(self) -> int:
        """Evaluations that there is time for."""
        counts = []
        if self.clock.total is not None:
            counts.append(self._allowed(self.clock.total) / len(self.numbers) - self.done)
        if self.clock.seconds is not None:
            counts.append((_SHARE * self.clock.seconds - self.spent) / max(self.cost, 1e-9))
        return max(0, int(min(counts)))

    def _allowed(self, steps: int) -> float:
        """Examples that may be evaluated in a training of so many steps."""
        return _SHARE / _PRICE * steps * self.data.batch

    def __call__(self, step: int) -> Evaluation:
        """An evaluation of the student as it is."""
        terms, student, teacher, examples = self._measure(self.numbers)
        self.done += 1
        return Evaluation(
            step=step,
            seconds=self.clock.elapsed,
            loss=self.passes.weigh(terms, self.scales),
            student=student,
            teacher=teacher,
            examples=examples,
        )

    def _measure(self, numbers: Sequence[int]) -> tuple[Metrics, Metrics, Metrics, int]:
        """Mean loss terms, mean metrics of the student and of the teacher, and the examples they are of."""
        from accelerate.utils import broadcast

        begin = time.perf_counter()
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
        mine = numbers[self.accelerator.process_index :: self.accelerator.num_processes]
        with _repeatable(self.data.settings.seed):
            for batch in self.data.batches(mine):
                sums["examples"] = sums["examples"] + len(batch["index"])
                for name, value in self._of_batch(batch):
                    sums[name] = sums[name] + value.double().sum().cpu()
        names = sorted(sums.keys() - {"examples"})
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            names = sorted(set(gather_object(names)))
        sums["seconds"] = torch.tensor(time.perf_counter() - begin, dtype=torch.float64)
        stacked = torch.stack([sums[name] for name in [*names, "seconds", "examples"]]).float()
        total = broadcast(self.accelerator.reduce(stacked.to(self.accelerator.device))).tolist()
        examples = round(total.pop())
        self.cost = total.pop() / self.accelerator.num_processes
        self.spent += self.cost
        by_kind: dict[str, Metrics] = defaultdict(dict)
        for name, value in zip(names, total, strict=True):
            kind, _, rest = name.partition(".")
            by_kind[kind][rest] = value / examples
        return by_kind["term"], by_kind["student"], by_kind["teacher"], examples

    def _of_batch(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        objective, targets = self.passes.objective, self.passes.targets
        objective.progress = 1.0  # losses of different times are compared
        batch = self.passes.here(batch)
        with evaluating(objective), self.accelerator.autocast():
            wanted = targets(batch) if targets is not None else None
            terms, outputs = objective.terms_and_outputs(batch, wanted)
        yield from ((f"term.{name}", value) for name, value in terms.items())
        shift, labels = objective.reader.task == "causal-lm", batch["labels"]
        found = with_labels(outputs, labels, shift)
        if wanted is not None:
            found |= agreement(outputs, wanted, batch)
            yield from ((f"teacher.{n}", v) for n, v in with_labels(wanted, labels, shift).items())
        yield from ((f"student.{name}", value) for name, value in found.items())


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Inside, random numbers are the same each time, as of a transform that crops; those outside go on."""
    before = random_state()
    seed_all(seed)
    try:
        yield
    finally:
        set_random_state(before)
