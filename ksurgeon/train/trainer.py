"""Distillation for those who train with ``transformers.Trainer``."""

from typing import Any

import torch
from torch import nn
from transformers import Trainer

from ksurgeon.train.blocks import pair_blocks
from ksurgeon.train.objective import Objective, Teacher
from ksurgeon.train.outputs import Reader
from ksurgeon.train.parameters import balance_factors, make_optimiser
from ksurgeon.train.settings import Settings, make_settings

__all__ = ["DistillationTrainer"]


class DistillationTrainer(Trainer):  # type: ignore[misc]
    """A ``Trainer`` whose loss is that of ``ksurgeon.distill``, and whose factors have a group of their own.

    Args:
        model: the student.
        teacher: is asked in eval mode, and is moved to the student's device.
        settings: ``task``, ``weights``, ``temperature``, ``factor_lr``, ``dropout`` and ``balance`` count;
            everything else is told by the ``TrainingArguments``.
        args, kwargs: those of ``Trainer``.
    """

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        teacher: nn.Module,
        settings: Settings | None = None,
        **kwargs: Any,
    ) -> None:
        self.settings = settings or make_settings()
        pairs = pair_blocks(model, teacher)
        reader = Reader(self.settings.task, model)
        self.objective = Objective(model, reader, self.settings, pairs)
        asked = Reader(self.settings.task, teacher, reader.pooling)
        self.asked = Teacher(teacher, asked, [its for _, its in pairs])
        self._scales: dict[str, float] = {}
        balance_factors(model)
        super().__init__(model, *args, **kwargs)
        teacher.to(self.args.device)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with the groups of ``parameter_groups``."""
        optimiser: torch.optim.Optimizer | None = self.optimizer  # type: ignore[has-type]
        if optimiser is None:
            given = self.settings.model_dump(exclude_unset=True)
            given |= {"lr": self.args.learning_rate, "weight_decay": self.args.weight_decay}
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            optimiser = make_optimiser(self.model, make_settings(**given), betas, self.args.adam_epsilon)
        self.optimizer = optimiser
        return optimiser

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The weighted sum of the loss terms, the mean over the batch."""
        inputs = dict(inputs)
        labels = inputs.pop("labels", None)
        batch = {"inputs": inputs, "labels": labels}
        targets = self.asked(batch)
        if not self.settings.dropout:
            model.eval()  # dropout would make the student learn another function
        self.objective.student = model
        if not self._scales and self.objective.pairs:
            self.objective.fit_projections(batch, targets)
            self.asked.blocks = tuple(its for _, its in self.objective.pairs)
        terms, outputs = self.objective.terms_and_outputs(batch, targets)
        means = {name: value.mean() for name, value in terms.items()}
        if not self._scales:
            free = () if self.settings.balance else tuple(means)
            self._scales = {
                name: 1.0 if name in ("task", "entropy", *free) else max(float(value.detach()), 1e-8)
                for name, value in means.items()
            }
        weights = self.objective.weights
        loss = torch.stack([v * (weights[n] / self._scales.get(n, 1.0)) for n, v in means.items()]).sum()
        return (loss, outputs) if return_outputs else loss
