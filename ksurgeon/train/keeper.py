"""The best state of a model that was met, by what it is worth on held-out examples."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ksurgeon.train.log import Evaluation, Listener, Phase

__all__ = ["Keeper"]


class Keeper:
    """Keeps a model as it was given unless a change makes it better.

    Args:
        evaluate: of the model as it is after so many steps, the same on all processes.
        history: of evaluations so far.

    Attributes:
        best: the best of them; None before the first, and where nothing is evaluated.
        values: state of the model that it was of.
    """

    def __init__(
        self,
        model: nn.Module,
        evaluate: Callable[[int], Evaluation],
        listener: Listener,
        history: list[Evaluation] | None = None,
    ) -> None:
        self.model, self.evaluate, self.listener = model, evaluate, listener
        self.history = [] if history is None else history
        self.best: Evaluation | None = None
        self.values = self.state()

    def state(self) -> dict[str, Tensor]:
        """A copy of the model's parameters and buffers."""
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def consider(self, evaluation: Evaluation, anyway: bool = False) -> bool:
        """Note an evaluation of the model as it is; whether it is the best, which ``anyway`` makes it."""
        is_best = anyway or self.best is None or evaluation.betters(self.best)
        evaluation = replace(evaluation, is_best=is_best)
        if is_best:
            self.best, self.values = evaluation, self.state()
        self.history.append(evaluation)
        self.listener.evaluated(evaluation)
        return is_best

    def attempt(self, name: str, change: Callable[[], object]) -> bool:
        """Change the model, and change it back unless that made it better; whether it did."""
        before = self.best
        assert before is not None
        change()
        kept = self.consider(self.evaluate(0))
        if not kept:
            self.restore()
        self.listener.judged(Phase(name=name, before=before, after=self.history[-1], kept=kept))
        return kept

    def restore(self) -> None:
        """Give the model the state of the best evaluation."""
        with torch.no_grad():
            self.model.load_state_dict(self.values)
