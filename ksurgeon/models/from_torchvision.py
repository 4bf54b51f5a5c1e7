"""Models of torchvision."""

from collections.abc import Iterator
from inspect import signature
from typing import Any

from torch import nn

from ksurgeon.models.fetch import Unavailable, reachable, torch_cached
from ksurgeon.models.options import checked_options
from ksurgeon.models.source import Source

__all__ = ["build", "has", "infer", "input_shape", "names", "pretrained", "settled"]


def names() -> list[str]:
    """All model names."""
    import torchvision

    return list(torchvision.models.list_models())


def has(name: str) -> bool:
    """Whether torchvision knows the model."""
    return name in names()


def build(source: Source) -> nn.Module:
    """The architecture with fresh weights, its backbone's included."""
    import torchvision

    options = checked_options(source.options)
    if "weights_backbone" in signature(torchvision.models.get_model_builder(source.name)).parameters:
        options["weights_backbone"] = None
    model: nn.Module = torchvision.models.get_model(source.name, weights=None, **options)
    return model


def pretrained(source: Source) -> tuple[nn.Module, list[str]]:
    """The model with torchvision's default weights, from the cache or downloaded.

    Raises:
        Unavailable: there are none, or they are neither cached nor to be downloaded.
    """
    import torchvision

    weights = getattr(torchvision.models.get_model_weights(source.name), "DEFAULT", None)
    if weights is None:
        raise Unavailable(f"torchvision has no pretrained weights for {source.name}")
    if torch_cached(weights.url) is None and not reachable(weights.url):
        raise Unavailable(f"{weights.url} is not cached and cannot be reached")
    model: nn.Module = torchvision.models.get_model(
        source.name, weights=weights, **checked_options(source.options)
    )
    return model, []


def settled(model: nn.Module) -> dict[str, Any]:
    """Options of the builder that pretrained weights change behind the caller's back."""
    options: dict[str, Any] = {}
    for name in ("aux_logits", "transform_input"):
        if isinstance(getattr(model, name, None), bool):
            options[name] = getattr(model, name)
    if hasattr(model, "aux_classifier"):
        options["aux_loss"] = model.aux_classifier is not None
    return options


def infer(model: nn.Module) -> Iterator[Source]:
    """Sources by all builders of the file that the model's class is from."""
    import torchvision

    weights = [value for value in model.state_dict().values() if value.dim() >= 2]
    classes = {"num_classes": weights[-1].shape[0]} if weights else {}
    size = getattr(model, "image_size", None)
    told = settled(model) | ({"image_size": size} if isinstance(size, int) else {})
    for name in names():
        if torchvision.models.get_model_builder(name).__module__ == type(model).__module__:
            for options in ({}, classes):
                yield Source(kind="torchvision", name=name, options=told | options)


def input_shape(name: str) -> tuple[int, ...]:
    """Channels, frames for a video network, height and width for which the model was trained."""
    import torchvision

    builder = torchvision.models.get_model_builder(name)
    weights = getattr(torchvision.models.get_model_weights(name), "DEFAULT", None)
    settings = getattr(weights.transforms, "keywords", {}) if weights is not None else {}
    size = settings.get("crop_size", 224)
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    return (3, 16, height, width) if ".video." in builder.__module__ else (3, height, width)
