"""How to train: every setting, its default and its bounds."""

from typing import Annotated, Literal, Unpack

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from ksurgeon.errors import TrainingError
from ksurgeon.rules.schema import Target
from ksurgeon.train.options import SettingsOptions, Task

__all__ = ["Settings", "Task", "make_settings"]

_Share = Annotated[float, Field(ge=0, lt=1)]
_NotNegative = Annotated[float, Field(ge=0)]


class Settings(BaseModel):
    """Settings of ``distill`` and ``finetune``.

    Attributes:
        task: what the outputs are; "auto" asks the model.
        steps: optimiser steps; where neither steps, epochs nor minutes are given, three epochs.
        epochs: passes over the training examples.
        minutes: training ends, its learning rate decayed, after so many minutes of wall time, what is done
            before the first step included; of several limits the first that is reached counts.
        batch: examples of an optimiser step, over all processes.
        micro_batch: examples of one forward pass; the gradients of a step's passes are added up.
        optimiser: "adamw", or "sgd" with ``momentum`` and ``nesterov``.
        lr: peak learning rate.
        factor_lr: multiplies ``lr`` for the factors of K-matrices.
        weight_decay: of matrices that are no factors, biases or parts of norms; of depthwise convolutions
            with ``decay_depthwise``.
        warmup: share of the training in which the learning rate rises.
        schedule: what follows: half a cosine, "constant", or "multistep": times ``gamma`` at each of
            ``milestones``, which are shares of the training.
        clip: largest norm of the gradient; 0 for no limit.
        ema: decay of the averaged weights, which are what is evaluated and kept; 0 for none.
        precision: "bf16", "fp16", "no", or "auto": bf16 on GPUs that have it.
        temperature: of the softened logits (Hinton, Vinyals, Dean 2015).
        weights: of the loss terms by name (``logits``, ``embedding``, ``tokens``, ``outputs``, ``hidden``,
            ``task``, ``loss``, ``entropy``); 0 leaves a term out, and a term that is off by default needs a
            weight.
        balance: whether each distillation term is divided by its value before the first step.
        dropout: whether dropout and stochastic depth are at work in the student; None: without a teacher.
        batch_norm: "train" estimates the statistics of batch normalisation on training inputs, all along;
            "frozen" changes those of the teacher as surgery changed the layers' inputs and keeps them so
            (what the teacher has not is estimated before the first step); "auto" is "frozen" with a teacher
            that has the same layers, otherwise "train".
        freeze: parameters that stay as they are: paths, or ``re:`` and a regular expression.
        channels_last: lay images out with their channels last in memory, which is faster for most
            convolutions on CPUs and for those in half precision on GPUs.
        checkpointing: recompute the blocks' activations in the backward pass.
        least_squares: whether every site is fitted again on its input covariance first; None:
            where the conversion fitted it to its weight alone, and nothing was trained since.
        layerwise: gradient steps of every site on its own, before the training of the whole; 0 for none;
            None: 100, where ``least_squares`` would be.
        rows: vectors that are kept for each site for these steps.
        memory: MiB that all of them may take.
        held_out: share of the examples, at most ``held_out_most``, that are evaluated and never trained on;
            0: some of those that are trained on are evaluated. Neither counts where test data are given.
        final: the weights that are the result: the "best" on held-out examples, or the "last", which are
            then evaluated on all of them and chosen by none.
        evaluate: evaluations during the training; fewer, and of fewer examples, where they would take more
            than a tenth of its time.
        patience: evaluations after which training ends if none is better than all before; 0 for no such end.
        cache_teacher: whether the teacher's outputs are computed once and kept; None: where they are one
            small vector for each example and nothing else of the teacher is needed; with ``minutes`` then
            not before the training, but when an example is met.
        balance_factors: steps between two evenings of the norms of a K-matrix's factors, which are evened
            before the first and after the last step, too; 0 for never.
        permutations: "soft" makes replaced shuffles and permutations doubly stochastic while they are
            trained, and exact permutations again at the end; "free" lets them become any K-matrix.
        temperatures: of soft permutations, first and last.
        spread: standard deviation of the random logits that soft permutations begin with; None: they begin
            near what they were.
        seed: of the split, the order of examples, and every random number of the training.
        workers: processes that prepare examples.
        limit: examples that are used, of those there are.
        broken: examples that may be unreadable before it is an error; below 1 a share of all.
        max_length: tokens after which texts are cut.
        checkpoint: minutes between two checkpoints.
        trackers: of accelerate, such as "tensorboard" or "wandb".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Task = "auto"
    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    minutes: PositiveFloat | None = None
    batch: PositiveInt = 32
    micro_batch: PositiveInt | None = None
    optimiser: Literal["adamw", "sgd"] = "adamw"
    momentum: _Share = 0.9
    nesterov: bool = False
    lr: PositiveFloat = 2e-4
    factor_lr: PositiveFloat = 1.0
    weight_decay: _NotNegative = 0.01
    decay_depthwise: bool = True
    warmup: _Share = 0.05
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"
    milestones: tuple[_Share, ...] = (1 / 3, 2 / 3, 8 / 9)
    gamma: PositiveFloat = 0.1
    clip: _NotNegative = 1.0
    ema: _Share = 0.99
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    temperature: PositiveFloat = 2.0
    weights: dict[str, _NotNegative] = {}
    balance: bool = True
    dropout: bool | None = None
    batch_norm: Literal["auto", "train", "frozen"] = "auto"
    freeze: tuple[Target, ...] = ()
    channels_last: bool = False
    checkpointing: bool = False
    least_squares: bool | None = None
    layerwise: Annotated[int, Field(ge=0)] | None = None
    rows: PositiveInt = 4096
    memory: PositiveInt = 1024
    held_out: _Share = 0.05
    held_out_most: PositiveInt = 512
    final: Literal["best", "last"] = "best"
    evaluate: PositiveInt = 10
    patience: Annotated[int, Field(ge=0)] = 0
    cache_teacher: bool | None = None
    balance_factors: Annotated[int, Field(ge=0)] = 500
    permutations: Literal["free", "soft"] = "free"
    temperatures: tuple[PositiveFloat, PositiveFloat] = (1.0, 0.05)
    spread: _NotNegative | None = None
    seed: int = 0
    workers: Annotated[int, Field(ge=0)] = 0
    limit: PositiveInt | None = None
    broken: _NotNegative = 0.01
    max_length: PositiveInt = 128
    checkpoint: PositiveFloat = 5.0
    trackers: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _whole_passes(self) -> "Settings":
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide batch {self.batch}")
        return self

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "Settings":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


def make_settings(settings: Settings | None = None, **options: Unpack[SettingsOptions]) -> Settings:
    """``settings`` with ``options`` put over them.

    Raises:
        TrainingError: an option that there is not, or a value out of its bounds.
    """
    known = settings.model_dump(exclude_unset=True) if settings is not None else {}
    try:
        return Settings.model_validate(known | options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        if first["type"] == "extra_forbidden":
            from difflib import get_close_matches

            near = get_close_matches(name, Settings.model_fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(Settings.model_fields)}"
            raise TrainingError(f"{name} is no setting of the training; {hint}") from error
        raise TrainingError(
            f"{name} = {first['input']!r}: {first['msg'].removeprefix('Value error, ')}"
        ) from error
