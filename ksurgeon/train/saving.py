"""A training as a checkpoint, and back."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

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
from ksurgeon.train.log import Evaluation

if TYPE_CHECKING:
    from ksurgeon.train.loop import Loop

__all__ = ["pack", "unpack"]

# Settings that may change when a training goes on.
_FREE = {"minutes", "steps", "epochs", "patience", "checkpoint", "workers", "trackers"}


def pack(loop: "Loop") -> Saved:
    """All that the training needs to go on; to be called by all processes."""
    tensors = {f"model.{name}": tensor for name, tensor in model_state(loop.model).items()}
    adam, plain_adam = optimiser_state(loop.model, _plain_optimiser(loop))
    tensors |= {f"optimiser.{name}": tensor for name, tensor in adam.items()}
    if loop.average.decay:
        tensors |= {f"average.{n}": t for n, t in _state_with(loop, loop.average.values).items()}
    if loop.best is not None:
        tensors |= {f"best.{n}": t for n, t in _state_with(loop, loop.best[1]).items()}
    numbers, plain_numbers = random_state()
    tensors |= {f"random.{name}": tensor for name, tensor in numbers.items()}
    plain = {
        "step": loop.step,
        "elapsed": loop.clock.elapsed,
        "used": loop.clock.used,
        "evaluations": loop.evaluations,
        "stale": loop.stale,
        "scales": loop.scales,
        "best": loop.best[0] if loop.best is not None else None,
        "history": [asdict(evaluation) for evaluation in loop.history],
        "optimiser": plain_adam,
        "random": plain_numbers,
        "broken": loop.data.broken,
        "run": _identity(loop),
    }
    return tensors, plain


def unpack(loop: "Loop", saved: Saved) -> None:
    """Bring a training that was just made to where the saved one was.

    Raises:
        TrainingError: the saved one was of another model, other data or other settings.
    """
    tensors, plain = saved
    own = _identity(loop)
    if plain["run"] != own:
        differing = [name for name, value in own.items() if plain["run"].get(name) != value]
        raise TrainingError(
            f"the last checkpoint is of a training with another {', '.join(differing)}; give the same, or "
            "begin anew without --resume"
        )

    def part(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    adam = (part("optimiser."), plain["optimiser"])
    restore(loop.model, _plain_optimiser(loop), part("model."), adam)
    held = [parameter.detach().clone() for parameter in loop.parameters]
    if loop.average.decay:
        loop.average.values = _values_of(loop, part("average."))
    if plain["best"] is not None:
        loop.best = (plain["best"], _values_of(loop, part("best.")))
    loop.assign(held)
    loop.step, loop.evaluations, loop.stale = plain["step"], plain["evaluations"], plain["stale"]
    loop.scales, loop.data.broken = plain["scales"], list(plain["broken"])
    loop.history = [Evaluation(**evaluation) for evaluation in plain["history"]]
    loop.clock.before, loop.clock.used = plain["elapsed"], plain["used"]
    set_random_state((part("random."), plain["random"]))


def _identity(loop: "Loop") -> dict[str, Any]:
    """What a checkpoint must have in common with the training that goes on from it."""
    return {
        "settings": loop.settings.model_dump(mode="json", exclude=_FREE),
        "data": [loop.data.source.name, len(loop.data.source)],
    }


def _plain_optimiser(loop: "Loop") -> Any:
    """Without accelerate's wrapper."""
    return getattr(loop.optimiser, "optimizer", loop.optimiser)


def _state_with(loop: "Loop", values: Sequence[Tensor]) -> dict[str, Tensor]:
    """The trained parameters by name, as they are with these values."""
    held = [parameter.detach().clone() for parameter in loop.parameters]
    loop.assign(values)
    trained = {name for name, parameter in loop.objective.named_parameters() if parameter.requires_grad}
    state = {name: t.clone() for name, t in model_state(loop.model).items() if name in trained}
    loop.assign(held)
    return state


def _values_of(loop: "Loop", state: dict[str, Tensor]) -> list[Tensor]:
    restore_weights(loop.model, state)
    return [parameter.detach().clone() for parameter in loop.parameters]
