"""Opening models by name, building architectures again, and telling where a model came from."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ksurgeon.errors import InputError, KsurgeonError, ModelNotFoundError, RecordError, WeightsError
from ksurgeon.models import from_function, from_timm, from_torchvision, from_transformers
from ksurgeon.models.fetch import Unavailable
from ksurgeon.models.inputs import Inputs, InputSize, inputs_for
from ksurgeon.models.names import parse
from ksurgeon.models.source import Source
from ksurgeon.models.weights import load_weights, seeded

__all__ = [
    "LoadedModel",
    "build",
    "example_inputs",
    "guess_sources",
    "infer_source",
    "open_model",
    "require_leave",
    "resolve_source",
    "skeleton",
]

_BUILDERS: dict[str, Callable[[Source], nn.Module]] = {
    "timm": from_timm.build,
    "torchvision": from_torchvision.build,
    "transformers": from_transformers.build,
    "function": from_function.build,
}
_PRETRAINED: dict[str, Callable[[Source], tuple[nn.Module, list[str]]]] = {
    "timm": from_timm.pretrained,
    "torchvision": from_torchvision.pretrained,
    "transformers": from_transformers.pretrained,
}
_INFERENCE: dict[str, Callable[[nn.Module], Iterator[Source]]] = {
    "timm": from_timm.infer,
    "torchvision": from_torchvision.infer,
    "transformers": from_transformers.infer,
}


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, its source, and what the user has to be told.

    ``make_inputs`` is given the model when ``example_inputs`` are first asked for; ``guesses`` tells that no
    library, record or size says what they are, only the model's first layer.
    """

    model: nn.Module
    source: Source
    make_inputs: Callable[[nn.Module], Inputs]
    notes: list[str] = field(default_factory=list)
    guesses: bool = False

    @cached_property
    def example_inputs(self) -> Inputs:
        """One example for the model, where the model is.

        Raises:
            InputError: nothing tells what the model takes, or a size that was asked for is no size.
        """
        return self.make_inputs(self.model)


def open_model(
    name: str,
    *,
    weights: str = "auto",
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    input_size: InputSize = None,
) -> LoadedModel:
    """Open the model that ``name`` stands for (see ``parse``).

    Args:
        name: what the user wrote.
        weights: "pretrained", "random", a safetensors file, or "auto": pretrained if they can be had, else
            random with a note. A network that is not there is noticed within seconds, without retries.
        seed: of random weights and of the example; the global random state stays as it is.
        options: arguments of the library's builder, of the function, or of a transformers config.
        input_size: as in ``example_inputs``.

    Raises:
        ModelNotFoundError: there is no such model.
        WeightsError: the weights asked for are not to be had, or do not fit.
        InputError: options that the builder does not take.
    """
    file = Path(weights) if weights not in ("auto", "pretrained", "random") else None
    if file is not None and file.suffix != ".safetensors":
        raise WeightsError(
            f'weights are "auto", "pretrained", "random" or a file FILE.safetensors, got "{weights}"'
        )
    kind, name = parse(name)
    if kind == "ksurgeon":
        raise ModelNotFoundError(f"{name} is a converted model with a record of its own: use ksurgeon.load")
    if kind == "transformers":
        source = from_transformers.describe(name, dict(options or {}))
    else:
        source = Source(kind=kind, name=name, options=dict(options or {}))
    model, notes, used = _with_weights(source, weights, file, seed)
    if kind == "torchvision":
        source = source.model_copy(update={"options": source.options | from_torchvision.settled(model)})
    source = source.model_copy(update={"weights": used, "weights_note": "; ".join(notes) or None})
    make_inputs = partial(inputs_for, source=source, input_size=input_size, seed=seed)
    guesses = kind == "function" and input_size is None
    return LoadedModel(model.eval(), source, make_inputs, notes, guesses)


def build(source: Source) -> nn.Module:
    """The architecture with fresh weights; downloads nothing, and leaves the global random state alone.

    Raises:
        ModelNotFoundError: the installed libraries do not have it.
        InputError: they do not take its options.
        RecordError: it comes from a file and would run code that the user neither named nor allowed.
    """
    return _build(source, 0)


def example_inputs(
    model_or_source: nn.Module | Source, input_size: InputSize = None, seed: int = 0
) -> Inputs:
    """One random example for a model or for what a source builds; see ``inputs_for``.

    Raises:
        InputError: nothing tells what the model takes, or the size is no size.
    """
    if isinstance(model_or_source, Source):
        return inputs_for(skeleton(model_or_source), model_or_source, input_size, seed)
    return inputs_for(model_or_source, None, input_size, seed)


def infer_source(model: nn.Module) -> Source | None:
    """Source of a model of timm, torchvision or transformers, or None if it cannot be told for sure.

    A source counts only if what it builds has the same modules, and tensors of the same names and shapes.
    """
    return next((source for source in guess_sources(model) if _same(model, source)), None)


def guess_sources(model: nn.Module) -> Iterator[Source]:
    """Sources that the attributes of a model point to; none is tried, and several may be given."""
    for library, infer in _INFERENCE.items():
        if library in sys.modules:
            yield from infer(model)


def skeleton(source: Source) -> nn.Module:
    """The architecture without memory for its tensors, where the library can build it so."""
    try:
        with torch.device("meta"):
            return build(source)
    except RecordError:
        raise
    except Exception:
        return build(source)


def resolve_source(model: nn.Module, source: str | Source | None) -> Source | None:
    """Source of a name, or of the model itself where none is given; None if it cannot be told."""
    if isinstance(source, Source):
        return source
    if source is not None:
        kind, name = parse(source)
        if kind not in ("transformers", "ksurgeon"):
            return Source.model_validate({"kind": kind, "name": name})
    return infer_source(model)


def require_leave(source: Source, record: object = "the record") -> None:
    """Return if everything that the source runs may run.

    Raises:
        RecordError: it comes from a file and would run code that the user neither named nor allowed.
    """
    if not source.is_trusted:
        raise RecordError(
            f"{record} would build the model with {source.code}, which is not run unless you ask for it: "
            "read it, then allow it with trust_remote_code=True (--trust-remote-code), or build the model "
            "yourself and call ksurgeon.load(folder, model=…)"
        )


def _build(source: Source, seed: int) -> nn.Module:
    require_leave(source)
    try:
        with seeded(seed):
            return _BUILDERS[source.kind](source)
    except KsurgeonError:
        raise
    except Exception as error:
        failure = f"the installed {source.kind} cannot build {source.name}"
        if source.kind == "transformers" or not source.options:
            raise ModelNotFoundError(f"{failure}: {error}") from error
        raise InputError(f"{failure} with the options {source.options}: {error}") from error


def _with_weights(
    source: Source, weights: str, file: Path | None, seed: int
) -> tuple[nn.Module, list[str], str]:
    """Model, notes, and what to record as its weights."""
    if file is not None:
        model = _build(source, seed)
        load_weights(model, file)
        return model, [], str(file)
    if source.kind == "function":
        if weights == "pretrained":
            raise WeightsError(
                f"{source.name} is a function that creates its own weights; use --weights auto, or a file"
            )
        return _build(source, seed), [], "given"
    if weights == "random":
        return _build(source, seed), [], "random"
    try:
        with seeded(seed):
            model, notes = _PRETRAINED[source.kind](source)
        return model, notes, "pretrained"
    except KsurgeonError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, Unavailable) else f"{type(error).__name__}: {error}"
    if weights == "pretrained":
        raise WeightsError(
            f"no pretrained weights for {source.name}: {reason}; connect to the network, or give a file "
            f"FILE.safetensors or random weights"
        )
    note = (
        f"The weights are RANDOM (seed {seed}), because no pretrained weights are available: {reason}. "
        f"Errors and outputs below say nothing about a trained {source.name}."
    )
    return _build(source, seed), [note], "random"


def _same(model: nn.Module, source: Source) -> bool:
    try:
        other = skeleton(source)
    except KsurgeonError:
        return False
    return str(model) == str(other) and _shapes(model) == _shapes(other)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
