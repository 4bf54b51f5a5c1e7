"""What of a model's output is to be learned, by name, whichever way the model gives it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.calibrate.preprocess import IGNORED, Batch
from ksurgeon.train.settings import Task

__all__ = ["Reader", "term_of"]

_LEFT_OUT = frozenset({"loss", "hidden_states", "attentions", "cross_attentions", "past_key_values"})
_SENTENCES = ("last_hidden_state", "pooler_output")


def term_of(name: str) -> str:
    """The loss term that a named output belongs to: ``logits.start`` belongs to ``logits``."""
    return name.partition(".")[0]


class Reader:
    """Reads the outputs of one task.

    Outputs are named ``logits`` (their classes along the last dimension), ``embedding``
    ``(batch, features)``, ``tokens`` ``(batch, positions, features)``, or ``outputs`` for what is none of
    these; where there are several, each has a name of its own behind a dot.

    Args:
        task: "auto" decides by the model's class and output.
        model: of timm, torchvision and transformers it is known whether it classifies.
        pooling: of an encoder's tokens to one embedding: "mean" or "cls".
    """

    def __init__(self, task: Task, model: nn.Module, pooling: str | None = None) -> None:
        self.task: Task = task
        self.pooling = pooling or _pooling_beside(model) or "mean"
        classes = getattr(model, "num_classes", None)
        module = type(model).__module__
        self._classifies = task in ("classification", "causal-lm", "masked-lm", "seq2seq") or (
            task == "auto" and (bool(classes) or module.startswith("torchvision.models."))
        )

    def __call__(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """The outputs by name."""
        named = dict(self._named(output, batch))
        if self.task == "embedding" and "logits" in named:
            named["embedding"] = named.pop("logits")
        return named

    def _named(self, output: Any, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        if isinstance(output, Mapping):
            yield from self._of_mapping(output, batch)
        elif isinstance(output, Tensor):
            yield self._of_tensor(output)
        elif isinstance(output, (tuple, list)):
            tensors = [t for t in output if isinstance(t, Tensor) and t.is_floating_point()]
            yield from ((f"outputs.{number}", tensor) for number, tensor in enumerate(tensors))

    def _of_tensor(self, output: Tensor) -> tuple[str, Tensor]:
        if self._classifies:
            return "logits", _classes_last(output)
        if self.task == "embedding" and output.dim() == 2:
            return "embedding", output
        return "outputs", output

    def _of_mapping(self, output: Mapping[str, Any], batch: Batch) -> Iterator[tuple[str, Tensor]]:
        tensors = {
            key: value
            for key, value in output.items()
            if isinstance(value, Tensor)
            and value.is_floating_point()
            and key not in _LEFT_OUT
            and value.dim()
        }
        logits = {key: value for key, value in tensors.items() if _is_logits(key)}
        if self.task == "embedding":
            logits = {}
        for key, value in logits.items():
            regression = self.task == "regression" or value.shape[-1] == 1
            kind = "outputs" if regression else "logits"
            yield (kind if len(logits) == 1 else f"{kind}.{key}"), _classes_last(value)
        rest = {key: value for key, value in tensors.items() if key not in logits}
        if not logits and "last_hidden_state" in rest:
            hidden = rest["last_hidden_state"]
            if hidden.dim() == 3:
                yield "embedding", self._pool(hidden, mask_of(batch, hidden))
            yield "tokens", hidden
        for key, value in rest.items():
            if key.endswith(("_embeds", "_embed")) and value.dim() == 2:
                yield f"embedding.{key}", value
            elif key not in _SENTENCES and (not logits or key.startswith("pred_")) and "hidden" not in key:
                yield f"outputs.{key}", value

    def _pool(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if self.pooling == "cls":
            return hidden[:, 0]
        if mask is None:
            return hidden.mean(1)
        weight = mask.to(hidden.dtype).unsqueeze(-1)
        return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)


def mask_of(batch: Batch, value: Tensor) -> Tensor | None:
    """Which positions of ``(batch, positions, …)`` count; None where all do."""
    labels, inputs = batch.get("labels"), batch["inputs"]
    attention = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    for mask in (labels != IGNORED if isinstance(labels, Tensor) and labels.dim() == 2 else None, attention):
        if mask is not None and value.dim() > 2 and mask.shape == value.shape[:2]:
            return mask.bool()
    return None


def _is_logits(key: str) -> bool:
    return key == "logits" or (key.endswith("_logits") and not key.startswith("logits_per"))


def _classes_last(logits: Tensor) -> Tensor:
    """Maps of scores ``(batch, classes, height, width)`` with their classes last."""
    return logits.movedim(1, -1) if logits.dim() >= 4 else logits


def _pooling_beside(model: nn.Module) -> str | None:
    """How sentence-transformers pools, where its settings lie beside the model."""
    place = getattr(getattr(model, "config", None), "name_or_path", "") or ""
    try:
        settings = json.loads((Path(place) / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return "cls" if settings.get("pooling_mode_cls_token") else "mean"


def detached(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that no gradient flows through."""
    return {name: tensor.detach() for name, tensor in named.items()}


def batch_size(batch: Batch) -> int:
    """Number of examples."""
    return int(batch["index"].numel()) if "index" in batch else _first(batch["inputs"]).shape[0]


def _first(inputs: Any) -> Tensor:
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    return next(value for value in values if isinstance(value, torch.Tensor))
