"""The settings of a training as keyword arguments."""

from collections.abc import Sequence
from typing import Literal, TypedDict

__all__ = ["SettingsOptions", "Task"]

Task = Literal["auto", "classification", "regression", "embedding", "causal-lm", "masked-lm", "seq2seq"]


class SettingsOptions(TypedDict, total=False):
    """As ``Settings`` describes them."""

    task: Task
    steps: int | None
    epochs: float | None
    minutes: float | None
    batch: int
    micro_batch: int | None
    optimiser: Literal["adamw", "sgd"]
    momentum: float
    nesterov: bool
    lr: float
    factor_lr: float
    weight_decay: float
    decay_depthwise: bool
    warmup: float
    schedule: Literal["cosine", "multistep", "constant"]
    milestones: Sequence[float]
    gamma: float
    clip: float
    ema: float
    precision: Literal["auto", "no", "bf16", "fp16"]
    temperature: float
    weights: dict[str, float]
    balance: bool
    dropout: bool | None
    batch_norm: Literal["auto", "train", "frozen"]
    freeze: Sequence[str]
    channels_last: bool
    checkpointing: bool
    least_squares: bool | None
    layerwise: int | None
    rows: int
    memory: int
    held_out: float
    held_out_most: int
    final: Literal["best", "last"]
    evaluate: int
    patience: int
    cache_teacher: bool | None
    balance_factors: int
    permutations: Literal["free", "soft"]
    temperatures: tuple[float, float]
    spread: float | None
    seed: int
    workers: int
    limit: int | None
    broken: float
    max_length: int
    checkpoint: float
    trackers: Sequence[str]
