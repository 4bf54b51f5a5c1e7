"""Example inputs: what a user may give, and calling a model with it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ksurgeon.errors import InputError, KsurgeonError

__all__ = ["ExampleInputs", "as_call", "call_model", "evaluating", "repeat_single_example", "tensors_of"]

ExampleInputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""A tensor, a tuple of positional arguments, or a mapping of keyword arguments."""


def as_call(example_inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that the example inputs stand for."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise InputError(
        "example_inputs must be a tensor, a tuple of positional arguments or a mapping of keyword "
        f"arguments, got {type(example_inputs).__name__}"
    )


def tensors_of(tree: Any) -> list[Tensor]:
    """All tensors in a nested structure, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def repeat_single_example(example_inputs: ExampleInputs) -> ExampleInputs:
    """The same inputs as a batch of two, where they are a batch of one; otherwise unchanged.

    With a batch of one, a reordering across the batch could not be told from one along the channels.
    """
    tensors = tensors_of(as_call(example_inputs))
    if not tensors or any(t.dim() < 1 or t.shape[0] != 1 for t in tensors):
        return example_inputs
    doubled: ExampleInputs = pytree.tree_map(
        lambda leaf: leaf.repeat(2, *[1] * (leaf.dim() - 1)) if isinstance(leaf, Tensor) else leaf,
        example_inputs if isinstance(example_inputs, (Tensor, tuple)) else _plain(example_inputs),
    )
    return doubled


def _plain(example_inputs: ExampleInputs) -> ExampleInputs:
    return dict(example_inputs) if isinstance(example_inputs, Mapping) else tuple(example_inputs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode, without gradients, and the random state is a copy.

    Models of transformers keep no cache of keys and values, which each call would go on from.
    """
    training = [module for module in model.modules() if module.training]
    held = [vars(module).get("config") for module in model.modules()]
    configs = {id(config): config for config in held if getattr(config, "use_cache", None) is True}
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        for module in training:
            module.training = False
        for config in configs.values():
            config.use_cache = False  # type: ignore[union-attr]
        with torch.no_grad(), torch.random.fork_rng(devices=[d.index for d in devices]):
            yield
    finally:
        for module in training:
            module.training = True
        for config in configs.values():
            config.use_cache = True  # type: ignore[union-attr]


def call_model(model: Callable[..., Any], example_inputs: ExampleInputs) -> Any:
    """Run the model.

    Raises:
        InputError: the model raised; its message and the shapes given are quoted.
    """
    args, kwargs = as_call(example_inputs)
    try:
        return model(*args, **kwargs)
    except KsurgeonError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors_of((args, kwargs))) or "no tensor"
        first = str(error).strip().partition("\n")[0] or "no message"
        raise InputError(
            f"the model does not run on the example inputs ({shapes}): "
            f"{type(error).__name__}: {first}. "
            "Give inputs of the shape that the model takes."
        ) from error
