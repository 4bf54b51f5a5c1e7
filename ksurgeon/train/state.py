"""What changes while a model is trained, and with that what a checkpoint holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.train.clock import Clock
from ksurgeon.train.data import Data
from ksurgeon.train.evaluate import Evaluator
from ksurgeon.train.keeper import Keeper
from ksurgeon.train.parameters import Averaged
from ksurgeon.train.settings import Settings

__all__ = ["State"]


@dataclass
class State:
    """A training between two steps.

    Attributes:
        objective: what is trained.
        model: the objective as it is distributed.
        optimiser: as accelerate wrapped it.
        average: of the trained parameters, which it lists.
        keeper: of the best weights.
        fallback: keeper of the student before its permutations were made soft, which hard ones must better.
        planned: evaluations, the last one included; fewer where there is no time for them.
        evaluations: those that are over, or were passed over because there was no time.
        stale: evaluations since the best one.
    """

    objective: nn.Module
    model: nn.Module
    optimiser: Any
    average: Averaged
    clock: Clock
    data: Data
    settings: Settings
    evaluator: Evaluator
    keeper: Keeper
    fallback: Keeper | None = None
    step: int = 0
    planned: int = 0
    evaluations: int = 1
    stale: int = 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return self.average.parameters

    @property
    def plain_optimiser(self) -> torch.optim.Optimizer:
        """Without accelerate's wrapper."""
        plain: torch.optim.Optimizer = getattr(self.optimiser, "optimizer", self.optimiser)
        return plain

    def values(self) -> list[Tensor]:
        """Copies of the trained parameters."""
        return [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def assign(self, values: Sequence[Tensor]) -> None:
        """Give the trained parameters these values."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
