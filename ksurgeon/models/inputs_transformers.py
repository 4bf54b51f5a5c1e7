"""Example inputs for models of transformers, from their signature, configuration and first layers alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.errors import InputError
from ksurgeon.models.inputs_example import Example, named
from ksurgeon.models.inputs_named import ALONGSIDE, MAKERS
from ksurgeon.models.inputs_random import Random
from ksurgeon.models.inputs_types import OF_TYPE
from ksurgeon.torch_private import pytree

__all__ = ["transformers_inputs"]

_TOWERS = {"image": "get_image_features", "audio": "get_audio_features", "video": "get_video_features"}


def transformers_inputs(model: Any, sizes: tuple[int, ...] | None, random: Random) -> dict[str, Any]:
    """Keyword arguments for one example.

    Raises:
        InputError: no example is known for one of the inputs that the model must have.
    """
    if type(model).forward is nn.Module.forward:
        raise InputError(
            f"{type(model).__name__} has no forward of its own, only parts that are run one after the other; "
            f"give one of its parts, or example inputs to it"
        )
    example = Example(model, sizes, random)
    special = OF_TYPE[model_type](example) if (model_type := example.config.model_type) in OF_TYPE else {}
    example.values |= special
    _towers(example)
    for name in _wanted(example):
        if name not in example.values:
            example.values[name] = _made(example, name)
    given = {k: v for k, v in example.values.items() if k in example.accepted or k in special}
    return {k: v.to(random.device) if isinstance(v, Tensor) else v for k, v in given.items()}


def _wanted(example: Example) -> list[str]:
    """Names of the inputs to make, those that others are derived from first."""
    accepted = example.accepted
    required = [n for n, p in accepted.items() if p.default is Parameter.empty]
    wanted = {n for n in (*example.main, *required) if n in accepted}
    if "input_ids" in accepted and example.has_text and not wanted & {"inputs_embeds", "decoder_input_ids"}:
        wanted.add("input_ids")
    if example.has_pictures and "pixel_values" in accepted and example.placeholder("image") is None:
        wanted.add("pixel_values")
    wanted |= {n for n, when in ALONGSIDE.items() if n in accepted and when(example, wanted)}
    wanted -= {n for n in wanted if n == "input_ids" and not example.has_text and len(wanted) > 1}
    order = {name: place for place, name in enumerate(MAKERS)}
    return sorted(wanted, key=lambda name: order.get(name, len(order)))


def _made(example: Example, name: str) -> Any:
    make = MAKERS.get(name)
    if make is None:
        raise InputError(
            f'no example is known for the input "{name}" of {type(example.model).__name__}; '
            "give example inputs"
        )
    return make(example)


def _towers(example: Example) -> None:
    """Pictures and sounds that stand in a text, with as many placeholders as the towers give features."""
    if "input_ids" not in example.accepted or "input_ids" in example.values:
        return
    parts: list[tuple[str, int, int]] = []
    for kind, method in _TOWERS.items():
        token = example.placeholder(kind)
        owners = (example.model, getattr(example.model, "model", None))
        features = next((f for owner in owners if (f := getattr(owner, method, None))), None)
        if token is None or features is None or (kind == "video" and parts):
            continue
        taken = named(features)
        for values in _tower_values(example, taken):
            if count := _count(example, features, values):
                parts.append((kind, token, count))
                example.values |= values
                break
    if parts:
        example.values |= example.text_with(parts)


def _tower_values(example: Example, taken: dict[str, Parameter]) -> Iterator[dict[str, Any]]:
    """Inputs of a tower: all that can be made, then those that it must have."""
    example.packed = taken
    names = [n for n in taken if n in example.accepted and (n in MAKERS or n in example.values)]
    must = [n for n, p in taken.items() if p.default is Parameter.empty]
    if not set(must) <= set(names):
        return
    values = dict(example.values)
    try:
        for name in names:
            if name not in example.values:
                example.values[name] = MAKERS[name](example)
        made = {n: example.values[n] for n in names if n != "input_ids" or n in must}
    except InputError:
        return
    finally:
        example.values = values
    yield made
    if set(must) < made.keys():
        yield {n: made[n] for n in must}


def _count(example: Example, features: Any, values: dict[str, Any]) -> int | None:
    """How many tokens stand for the output of a tower; None if it does not run."""
    where = example.random.home
    moved = {n: v.to(where) if isinstance(v, Tensor) else v for n, v in values.items()}
    try:
        with _unchanged(example.model):
            output = features(**moved)
    except Exception:
        return None
    width = getattr(example.text, "hidden_size", None)
    found = (getattr(output, name, None) for name in ("pooler_output", "last_hidden_state"))
    output = next((value for value in found if value is not None), output)
    tensors = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]
    return sum(t.numel() // (width or t.shape[-1]) for t in tensors) or None


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Run a part of the model: no gradients, no dropout, and nothing of its state changes."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module in training:
            module.training = True
