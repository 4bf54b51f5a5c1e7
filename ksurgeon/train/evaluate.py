"""Held-out examples: the loss, and metrics of teacher and student side by side."""

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ksurgeon.find.inputs import evaluating
from ksurgeon.train.data import Data
from ksurgeon.train.metrics import agreement, with_labels
from ksurgeon.train.objective import Objective
from ksurgeon.train.targets import TargetSource

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["evaluate"]

Metrics = dict[str, float]


def evaluate(
    objective: Objective,
    targets: TargetSource | None,
    data: Data,
    accelerator: "Accelerator",
    weigh: Callable[[Metrics], float],
) -> tuple[float, Metrics, Metrics] | None:
    """The weighted loss, and the mean metrics of the student and of the teacher; None without examples.

    Every process takes its share of the examples.
    """
    from accelerate.utils import send_to_device

    if not data.held_out:
        return None
    names: list[str] = []
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
    mine = data.held_out[accelerator.process_index :: accelerator.num_processes]
    for batch in data.batches(mine):
        batch = send_to_device(batch, accelerator.device)
        with evaluating(objective), accelerator.autocast():
            wanted = targets(batch) if targets is not None else None
            terms, outputs = objective.terms_and_outputs(batch, wanted)
        found = {f"term.{name}": value for name, value in terms.items()}
        shift = objective.reader.task == "causal-lm"
        found |= _prefixed("student", with_labels(outputs, batch["labels"], shift))
        if wanted is not None:
            found |= _prefixed("student", agreement(outputs, wanted, batch))
            found |= _prefixed("teacher", with_labels(wanted, batch["labels"], shift))
        for name, value in found.items():
            sums[name] = sums[name] + value.double().sum().cpu()
    names = sorted(sums)
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        names = sorted(set(gather_object(names)))
    stacked = torch.stack([sums[name] for name in names]).float().to(accelerator.device)
    means = (accelerator.reduce(stacked) / len(data.held_out)).tolist()
    by_kind: dict[str, Metrics] = defaultdict(dict)
    for name, mean in zip(names, means, strict=True):
        kind, _, rest = name.partition(".")
        by_kind[kind][rest] = mean
    return weigh(by_kind["term"]), by_kind["student"], by_kind["teacher"]


def _prefixed(prefix: str, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in metrics.items()}
