"""What the record of a model tells of its inputs."""

from typing import Any

from torch import nn

from ksurgeon.errors import InputError
from ksurgeon.models.inputs import Inputs, inputs_for
from ksurgeon.models.opening import resolve_source
from ksurgeon.models.source import Source
from ksurgeon.surgery.record import describe_inputs, inputs_from, record_of

__all__ = ["image_size", "inputs_like", "source_of"]


def source_of(model: nn.Module, source: str | Source | None = None) -> Source | None:
    """Where a model comes from: as its record says, else as for ``resolve_source``."""
    record = record_of(model)
    return record.source if record is not None else resolve_source(model, source)


def image_size(described: dict[str, Any] | None) -> tuple[int, ...] | None:
    """Height and width of the images among the inputs that ``describe_inputs`` described."""
    shapes = (value["tensor"] for value in _tensors(described) if "float" in value.get("dtype", ""))
    return next((tuple(shape[2:]) for shape in shapes if len(shape) == 4), None)


def inputs_like(model: nn.Module, source: Source | None, described: dict[str, Any], seed: int = 0) -> Inputs:
    """Example inputs of the shapes that ``describe_inputs`` described, on the model's device.

    Their values are what the model's library tells of it, such as which tokens stand for an image, where it
    makes inputs of these shapes; random numbers elsewhere.

    Raises:
        RecordError: the description is damaged.
    """
    shapes = [value["tensor"] for value in _tensors(described)]
    for size in (None, *(shape[1:] for shape in shapes[:1] if shape[1:])):
        try:
            made = inputs_for(model, source, size, seed)
        except InputError:
            continue
        if _shapes(describe_inputs(made)) == _shapes(described):
            return made
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), "cpu")
    return inputs_from(described, device, seed)


def _shapes(described: dict[str, Any] | None) -> Any:
    """The description without the dtypes, and without the largest numbers."""
    return _without(described, ("dtype", "max", "min"))


def _without(tree: Any, names: tuple[str, ...]) -> Any:
    if isinstance(tree, dict):
        return {key: _without(value, names) for key, value in tree.items() if key not in names}
    return [_without(value, names) for value in tree] if isinstance(tree, list) else tree


def _tensors(tree: Any) -> list[dict[str, Any]]:
    if isinstance(tree, dict) and "tensor" in tree:
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [found for part in parts for found in _tensors(part)]
