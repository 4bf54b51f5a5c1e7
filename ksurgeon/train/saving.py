"""A training as a checkpoint, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from ksurgeon.errors import TrainingError
from ksurgeon.train.checkpoint import (
    Saved,
    model_state,
    optimiser_state,
    random_state,
    restore,
    restore_weights,
    set_random_state,
)
from ksurgeon.train.keeper import Keeper
from ksurgeon.train.log import Evaluation
from ksurgeon.train.settings import Settings
from ksurgeon.train.state import State

__all__ = ["FORMAT", "pack", "require_same", "unpack"]

FORMAT = 2
"""Of checkpoints; one of another is of no use to this version."""

# Settings that may change when a training goes on.
_FREE = {"minutes", "steps", "epochs", "patience", "checkpoint", "workers", "trackers"}


def pack(state: State) -> Saved:
    """All that the training needs to go on; to be called by all processes."""
    tensors = {f"model.{name}": tensor for name, tensor in model_state(state.model).items()}
    adam, plain_adam = optimiser_state(state.model, state.plain_optimiser)
    tensors |= {f"optimiser.{name}": tensor for name, tensor in adam.items()}
    if state.average.decay:
        tensors |= {f"average.{n}": t for n, t in _state_with(state, state.average.values).items()}
    for kind, keeper in _keepers(state).items():
        tensors |= {f"{kind}.{name}": tensor for name, tensor in keeper.values.items()}
    numbers, plain_numbers = random_state()
    tensors |= {f"random.{name}": tensor for name, tensor in numbers.items()}
    plain = {
        "step": state.step,
        "elapsed": state.clock.elapsed,
        "used": state.clock.used,
        "planned": state.planned,
        "evaluations": state.evaluations,
        "stale": state.stale,
        "scales": state.evaluator.scales,
        "examples": state.evaluator.numbers,
        "evaluating": [state.evaluator.spent, state.evaluator.cost, state.evaluator.done],
        **{kind: asdict(keeper.best) for kind, keeper in _keepers(state).items() if keeper.best},
        "history": [asdict(evaluation) for evaluation in state.keeper.history],
        "optimiser": plain_adam,
        "random": plain_numbers,
        "broken": state.data.broken,
        "run": _identity(state),
    }
    return tensors, plain


def unpack(state: State, saved: Saved) -> None:
    """Bring a training that was just made to where the saved one was.

    Raises:
        TrainingError: the saved one was of another model, other data or other settings.
    """
    tensors, plain = saved
    run = plain["run"]
    if "settings" in run:  # which a checkpoint between two groups of layers has not
        run = {**run, "settings": {**_plain(Settings()), **run["settings"]}}  # an older version has fewer
    require_same(run, _identity(state))

    def part(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    adam = (part("optimiser."), plain["optimiser"])
    restore(state.model, state.plain_optimiser, part("model."), adam)
    held = state.values()
    if state.average.decay:
        state.average.values = _values_of(state, part("average."))
    state.assign(held)
    for kind, keeper in _keepers(state).items():
        keeper.best, keeper.values = Evaluation(**plain[kind]), part(f"{kind}.")
    state.step, state.planned = plain["step"], plain["planned"]
    state.evaluations, state.stale = plain["evaluations"], plain["stale"]
    evaluator = state.evaluator
    evaluator.scales, evaluator.numbers = plain["scales"], plain["examples"]
    evaluator.spent, evaluator.cost, evaluator.done = plain["evaluating"]
    state.data.broken = list(plain["broken"])
    state.keeper.history[:] = [Evaluation(**evaluation) for evaluation in plain["history"]]
    state.clock.before, state.clock.used = plain["elapsed"], plain["used"]
    set_random_state((part("random."), plain["random"]))


def require_same(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Whether a checkpoint is of the training that goes on from it.

    Raises:
        TrainingError: it is of another; the message names what differs.
    """
    differing = sorted(name for name in saved.keys() | own.keys() if saved.get(name) != own.get(name))
    if differing:
        raise TrainingError(
            f"the last checkpoint is of a training with another {', '.join(differing)}; give the same, or "
            "begin anew without --resume"
        )


def _identity(state: State) -> dict[str, Any]:
    """What a checkpoint must have in common with the training that goes on from it."""
    return {
        "format": FORMAT,
        "settings": _plain(state.settings),
        "data": [state.data.source.name, len(state.data.source)],
    }


def _keepers(state: State) -> dict[str, Keeper]:
    keepers = {"best": state.keeper, "fallback": state.fallback}
    return {kind: keeper for kind, keeper in keepers.items() if keeper is not None}


def _plain(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude=_FREE)


def _state_with(state: State, values: Sequence[Tensor]) -> dict[str, Tensor]:
    """The trained parameters by name, as they are with these values."""
    held = state.values()
    state.assign(values)
    trained = {name for name, parameter in state.objective.named_parameters() if parameter.requires_grad}
    tensors = {name: t.clone() for name, t in model_state(state.model).items() if name in trained}
    state.assign(held)
    return tensors


def _values_of(state: State, tensors: dict[str, Tensor]) -> list[Tensor]:
    restore_weights(state.model, tensors)
    return state.values()
