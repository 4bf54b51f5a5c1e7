"""The passes of one step: loss terms, how they are weighted, and the gradients of a whole batch."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ksurgeon.calibrate.preprocess import Batch
from ksurgeon.errors import TrainingError
from ksurgeon.train.objective import Objective
from ksurgeon.train.targets import TargetSource

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Passes"]

_FREE = ("task", "loss", "entropy")  # terms that are not divided by what they were before the first step


class Passes:
    """Runs an objective on the batches of this process.

    Args:
        targets: gives the teacher's outputs for a batch; None without a teacher.
        examples: of a whole batch, over all processes.
    """

    def __init__(
        self, objective: Objective, targets: TargetSource | None, accelerator: "Accelerator", examples: int
    ) -> None:
        self.objective, self.targets = objective, targets
        self.accelerator, self.examples = accelerator, examples

    def backward(
        self, model: nn.Module, micro_batches: Sequence[Batch], scales: Mapping[str, float]
    ) -> dict[str, float]:
        """Leave the gradients of a whole batch in ``model``; each loss term's mean over the batch."""
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                terms = self._terms(model, batch)
                share = self.accelerator.num_processes / self.examples
                weighted = [value.sum() * self._weight(name, scales) for name, value in terms.items()]
                self.accelerator.backward(torch.stack(weighted).sum() * share)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach().sum()
        return self._mean(sums)

    def scales(self, micro_batches: Sequence[Batch], balance: bool) -> dict[str, float]:
        """What each term is divided by: its value before the first step, on the whole first batch."""
        sums: dict[str, Tensor] = {}
        with torch.no_grad():  # without the wrapper, which would synchronise processes
            for batch in micro_batches:
                for name, value in self._terms(self.objective, batch).items():
                    sums[name] = sums.get(name, torch.zeros(())) + value.sum().cpu()
        return {
            name: max(value, 1e-8) if balance and name not in _FREE else 1.0
            for name, value in self._mean(sums).items()
        }

    def weigh(self, terms: Mapping[str, float], scales: Mapping[str, float]) -> float:
        """The loss that these terms make."""
        return sum(value * self._weight(name, scales) for name, value in terms.items())

    def here(self, batch: Batch) -> Batch:
        """The batch on the device that trains."""
        from accelerate.utils import send_to_device

        moved: Batch = send_to_device(batch, self.accelerator.device)
        return moved

    def _terms(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        batch = self.here(batch)
        with self.accelerator.autocast():
            targets = self.targets(batch) if self.targets is not None else None
            terms: dict[str, Tensor] = model(batch, targets)
        if not terms:
            raise TrainingError(
                "there is nothing to learn: the data has no labels and there is no teacher, or teacher and "
                "student give no outputs of the same names, or all weights are 0"
            )
        return terms

    def _weight(self, name: str, scales: Mapping[str, float]) -> float:
        return self.objective.weights[name] / scales.get(name, 1.0)

    def _mean(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        stacked = torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in sums.values()])
        total: Tensor = self.accelerator.reduce(stacked.to(self.accelerator.device))
        return {name: value / self.examples for name, value in zip(sums, total.tolist(), strict=True)}
