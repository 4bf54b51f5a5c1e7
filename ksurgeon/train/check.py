"""Whether labelled examples are what a model can be trained on, before it is."""

import torch
from torch import nn

from ksurgeon.calibrate.preprocess import Batch
from ksurgeon.errors import DataError
from ksurgeon.find.inputs import evaluating, tensors_of
from ksurgeon.train.data import Data
from ksurgeon.train.losses import Loss, check_range, own_loss
from ksurgeon.train.objective import Objective
from ksurgeon.train.outputs import Reader, batch_size

__all__ = ["check_examples"]

_MOST = 512  # of the training examples, and of those that are held out
_BATCH = 32


def check_examples(data: Data, model: nn.Module, loss: Loss | None = None) -> None:
    """Return if several hundred examples can be read and are finite, and have labels that fit the model.

    The model is on the CPU.

    Args:
        loss: is tried on a batch, and no labels are looked at.

    Raises:
        DataError: they cannot, or all have the same label.
        TrainingError: the loss raises, or gives no loss.
    """
    objective = Objective(model, Reader(data.settings.task, model), data.settings)
    classes: int | None = None
    for numbers in (data.train, data.held_out):
        order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0))[:_MOST]
        seen: set[float] = set()
        for count, batch in enumerate(data.batches([numbers[i] for i in order.tolist()], _BATCH)):
            _require_finite(batch, data)
            if loss is not None:
                if not count:
                    with evaluating(model):
                        own_loss(loss, model, batch["inputs"], batch_size(batch), 0.0)
                continue
            labels = batch["labels"]
            if labels is None:
                raise DataError(f"{data.source.name} has no labels, and a training from scratch needs them")
            if not count:
                with evaluating(model):
                    _, outputs = objective.terms_and_outputs(batch, None)
                classes = outputs["logits"].shape[-1] if "logits" in outputs else None
            if classes is not None and not labels.is_floating_point():
                check_range(labels, classes)
            seen.update(labels.flatten().tolist())
        if len(seen) == 1 and numbers is data.train:
            raise DataError(
                f"all of {len(order)} examples of {data.source.name} have the label {seen.pop()}; give data "
                "with two classes at least"
            )


def _require_finite(batch: Batch, data: Data) -> None:
    for tensor in tensors_of(batch["inputs"]):
        broken = ~tensor.isfinite().flatten(1).all(1)
        if bool(broken.any()):
            number = int(batch["index"][broken][0])
            raise DataError(f"{data.source.names(number)} has NaN or infinite values; remove or mend it")
