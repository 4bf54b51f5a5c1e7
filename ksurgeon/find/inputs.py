"""Example inputs: what a user may give, and calling a model with it."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from ksurgeon.errors import InputError, KsurgeonError
from ksurgeon.torch_private import pytree

__all__ = [
    "ExampleInputs",
    "as_call",
    "call_model",
    "evaluating",
    "is_offloaded",
    "is_on_meta",
    "repeat_single_example",
    "require_weights",
    "tensors_of",
]

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


def is_on_meta(model: nn.Module) -> bool:
    """Whether the model is on the meta device and cannot compute; accelerate's hooks bring weights back."""
    return _has_meta(model) and not is_offloaded(model)


def is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate's hooks keep weights of the model elsewhere and bring them back for each call."""
    return _has_meta(model) and any(hasattr(module, "_hf_hook") for module in model.modules())


def _has_meta(model: nn.Module) -> bool:
    return any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def require_weights(model: nn.Module) -> None:
    """Return if the model has weights to work on.

    Raises:
        InputError: some are not initialised yet, or on the meta device; the message says what to do.
    """
    lazy = [name for name, p in model.named_parameters() if isinstance(p, UninitializedTensorMixin)]
    if lazy:
        raise InputError(
            f"{', '.join(lazy[:3])}{' …' if lazy[3:] else ''}: no shape before the model's first run; run it "
            "once, as by model(example_inputs), then go on"
        )
    if is_on_meta(model):
        name = next(n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta)
        raise InputError(
            f"{name} is on the meta device and has no values; load the model's weights first "
            '(load_state_dict(…, assign=True), from_pretrained, or model.to_empty(device="cpu") and an '
            "initialisation)"
        )


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
            f"{_advice(model, kwargs)}"
        ) from error


def _advice(model: Callable[..., Any], kwargs: Mapping[str, Any]) -> str:
    try:
        inspect.signature(getattr(model, "forward", model)).bind(**kwargs)
    except (TypeError, ValueError):
        if kwargs:
            return (
                f"A mapping stands for keyword arguments, here {', '.join(map(str, kwargs))}; if the model "
                "takes one mapping as its argument, give a tuple that holds it: (mapping,)."
            )
    return "Give inputs of the shape that the model takes."
