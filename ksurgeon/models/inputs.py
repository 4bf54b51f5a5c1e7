"""Example inputs that fit a model: what its library says it takes, or what its first layer shows."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ksurgeon.errors import InputError
from ksurgeon.models import from_timm, from_torchvision
from ksurgeon.models.inputs_random import Random, resized
from ksurgeon.models.source import Source

__all__ = ["InputSize", "Inputs", "inputs_for"]

Inputs = tuple[Any, ...] | dict[str, Any]
InputSize = int | Sequence[int] | None

_TOKENS = 16


def inputs_for(
    model: nn.Module, source: Source | None = None, input_size: InputSize = None, seed: int = 0
) -> Inputs:
    """One random example for the model: a tuple of positional arguments, or keyword arguments.

    What its library does not tell is guessed from the model's first layer. Floating-point inputs have the
    dtype of the model's parameters, and all are on its device. For models of transformers that take text
    with pictures or sounds, the towers are run once to learn how many tokens stand for them.

    Args:
        model: the model.
        source: where it comes from, if known; torchvision's sizes go by name.
        input_size: one number for the side of a square image (or the length of a text or sound), or the
            height and width, or the whole shape of one example.
        seed: of the random numbers; the global random state stays as it is.

    Raises:
        InputError: nothing tells what the model takes, or the size is no size.
    """
    sizes = _sizes(input_size)
    random = Random(model, seed)
    if _of_transformers(model):
        from ksurgeon.models.inputs_transformers import transformers_inputs

        return transformers_inputs(model, sizes, random)
    shape = _known_shape(model, source) or _shape_of_first_layer(model)
    if shape is None and sizes is None:
        raise InputError(
            f"cannot guess the inputs of {type(model).__name__}; pass example_inputs, or the shape of one "
            f"example as the input size"
        )
    if isinstance(shape, int):
        return (_moved(random.tokens(shape, sizes[0] if sizes else _TOKENS), random),)
    return (_moved(random.normal(1, *resized(shape, sizes)), random),)


def _of_transformers(model: nn.Module) -> bool:
    return hasattr(model, "main_input_name") and hasattr(model, "config")


def _moved(value: Tensor, random: Random) -> Tensor:
    return value.to(random.device)


def _sizes(input_size: InputSize) -> tuple[int, ...] | None:
    if input_size is None:
        return None
    sizes = (input_size,) if isinstance(input_size, int) else tuple(input_size)
    if not sizes or min(sizes) < 1:
        raise InputError(f"an input size is one or more numbers of at least 1, got {input_size}")
    return sizes


def _known_shape(model: nn.Module, source: Source | None = None) -> tuple[int, ...] | None:
    """Shape of one example, if the model's library tells it."""
    if source is not None and source.kind == "torchvision":
        return from_torchvision.input_shape(source.name)
    if any(base.__module__.startswith("torchvision.models.") for base in type(model).__mro__):
        return (3, 16, 112, 112) if ".video." in type(model).__module__ else (3, 224, 224)
    return from_timm.input_shape(model)


def _shape_of_first_layer(model: nn.Module) -> tuple[int, ...] | int | None:
    """Shape of one example, or the size of the vocabulary where examples are tokens."""
    for module in model.modules():
        match module:
            case nn.Embedding():
                return module.num_embeddings
            case nn.Linear():
                return (module.in_features,)
            case nn.Conv1d():
                return (module.in_channels, 1024)
            case nn.Conv2d():
                return (module.in_channels, 224, 224)
            case nn.Conv3d():
                return (module.in_channels, 16, 112, 112)
    return None
