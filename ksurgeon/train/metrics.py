"""Metrics that need no settings: how far student and teacher agree with each other and with labels."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ksurgeon.calibrate.preprocess import IGNORED, Batch
from ksurgeon.train.outputs import mask_of

__all__ = ["agreement", "with_labels"]


def agreement(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], batch: Batch
) -> dict[str, Tensor]:
    """For each example: ``agreement`` of classes, ``cosine`` of embeddings, relative ``error`` of others."""
    found: dict[str, Tensor] = {}
    for name, output in student.items():
        if name not in teacher or output.shape != teacher[name].shape:
            continue
        term, target = name.partition(".")[0], teacher[name]
        if term == "logits":
            same = (output.argmax(-1) == target.argmax(-1)).float()
            found.setdefault("agreement", _mean(same, mask_of(batch, output)))
        elif term == "embedding":
            found.setdefault("cosine", F.cosine_similarity(output.float(), target.float(), -1))
        elif term == "outputs":
            difference = (output - target).float().flatten(1).norm(dim=1)
            found.setdefault("error", difference / target.float().flatten(1).norm(dim=1).clamp_min(1e-12))
    return found


def with_labels(outputs: Mapping[str, Tensor], labels: Tensor | None, shift: bool) -> dict[str, Tensor]:
    """For each example: ``accuracy``, where there are labels and classes."""
    logits = outputs.get("logits")
    if labels is None or logits is None or labels.is_floating_point():
        return {}
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    if labels.shape != logits.shape[:-1]:
        return {}
    right = (logits.argmax(-1) == labels).float()
    return {"accuracy": _mean(right, labels != IGNORED if labels.dim() > 1 else None)}


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if values.dim() == 1:
        return values
    weight = torch.ones_like(values) if mask is None else mask.to(values.dtype)
    return (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1)
