"""Calibration data: what training reads, or batches in Python, brought to batches that the model takes."""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.calibrate.examples import Source
from ksurgeon.calibrate.read import Reading, read_batches
from ksurgeon.calibrate.sources import modality_of, name_of, open_source, resolve
from ksurgeon.errors import DataError, InputError, KsurgeonError
from ksurgeon.find.inputs import ExampleInputs, as_call, call_model, tensors_of
from ksurgeon.find.unchanged import example_run
from ksurgeon.models.source import Source as ModelSource
from ksurgeon.torch_private import pytree

__all__ = ["Batches", "Data", "open_data"]

_HELD_OUT = 4  # one batch of so many is held out
_SHOWN = 5


@dataclass(frozen=True)
class Batches:
    """Batches to fit with, and others, held out, to judge with.

    Attributes:
        fit: inputs whose moments are taken.
        check: inputs on which changes of the outputs are measured; those of ``fit`` where there is one batch
            of one example in all.
        fingerprint: of all of them.
        broken: examples that could not be read, by name and reason.
        warning: that says so; empty where there are none.
    """

    fit: list[ExampleInputs]
    check: list[ExampleInputs]
    fingerprint: str
    broken: list[str] = field(default_factory=list)
    warning: str = ""

    @property
    def example(self) -> ExampleInputs:
        """A single example as a batch, where its tensors agree on which dimension counts examples."""
        return _split(self.check[0], 1)[0]


Data = str | Path | Tensor | tuple[Any, ...] | Mapping[str, Any] | Iterable[Any] | Callable[[], Any] | Batches
"""What ``open_source`` takes; or one batch as a tensor, a tuple of positional or a mapping of keyword
arguments; a list, loader or other iterable of such batches, or a function that gives one."""


def open_data(
    data: Data,
    model: nn.Module,
    *,
    examples: int = 512,
    batch_size: int = 16,
    tokenizer: str | None = None,
    max_length: int = 128,
    source: ModelSource | None = None,
    example_inputs: ExampleInputs | None = None,
) -> Batches:
    """Batches of at most ``examples`` examples, on the model's device, that the model is known to run on.

    What a training reads is read in the same way, examples drawn from all there are; those that cannot be
    read are left out, with a warning that names them. Tensors in Python are taken for batches, unless the
    model runs on them only once they are joined to batches. Labels are left out.

    Args:
        data: see ``Data``; what an earlier call gave is given back.
        model: the model they are for.
        examples: most examples taken; of an iterable the rest is never read.
        batch_size: examples of a batch, where the data come without batches.
        tokenizer: folder of the tokenizer for texts; the model's own if left out.
        max_length: tokens after which texts are cut; no more than tokenizer and model allow.
        source: where the model comes from, and with it its tokenizer or processor, where that is known.
        example_inputs: tell the size of images where the model's library does not, and how many dimensions
            a batch has.

    Raises:
        DataError: no such data, nothing in them, or none that can be read.
        InputError: the model does not run on them.
    """
    if isinstance(data, Batches):
        return data
    reading = Reading(model, examples, batch_size, tokenizer, max_length, source, _image_size(example_inputs))
    found = resolve(data)
    if isinstance(found, Source):
        batches = read_batches(found, reading)
    else:
        batches = _in_python(found, name_of(data), reading, example_inputs)
    place = _device(model)
    taken, moved = 0, list[ExampleInputs]()
    for batch in batches:
        moved.append(_moved(batch, place))
        taken += _size(moved[-1])
        if taken >= examples:
            break
    broken = reading.broken
    if not moved:
        more = f"; {len(broken)} could not be read, the first: {broken[0]}" if broken else ""
        raise DataError(f"there are no data in {name_of(data)}; give at least one example{more}")
    warning = _warning(broken, len(broken) + taken, name_of(data))
    if warning:
        warnings.warn(warning, stacklevel=2)
    with example_run(model):
        try:
            call_model(model, moved[0])
        except InputError as error:
            raise InputError(f"the data do not match the model: {error}") from error
    if len(moved) == 1 and _size(moved[0]) > 1:
        moved = _split(moved[0], -(-_size(moved[0]) // _HELD_OUT))
    check = moved[_HELD_OUT - 1 :: _HELD_OUT] or moved[-1:]
    held = {id(batch) for batch in check}
    fit = [batch for batch in moved if id(batch) not in held] or moved
    return Batches(fit, check, _fingerprint(moved), broken, warning)


def _warning(broken: Sequence[str], examples: int, name: str) -> str:
    if not broken:
        return ""
    shown = "".join(f"\n  {what}" for what in broken[:_SHOWN])
    more = f"\n  and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
    return f"{len(broken)} of {examples} examples of {name} cannot be read and are left out:{shown}{more}"


def _in_python(data: Any, name: str, reading: Reading, example_inputs: ExampleInputs | None) -> Iterator[Any]:
    """Batches of data in Python, which are batches, or examples to be joined."""
    if isinstance(data, tuple) and data and modality_of(data[0]) != "tensors":
        data = list(data)
    if isinstance(data, (Tensor, tuple, Mapping)):
        data = [data]
    if not isinstance(data, Iterable) and not _has_numbers(data):
        raise InputError(
            "data are a tensor, a tuple or a mapping of the model's arguments, an iterable of such batches, "
            f"or what a training takes, got {type(data).__name__}"
        )
    items = _items(data, name)
    first = next(items, None)
    if first is None:
        return iter([])
    if not _has_numbers(data):
        data = chain([first], items)
    if modality_of(first) != "tensors":
        return _joined(data, reading)
    ways = [_separate, _joined]
    errors = list[KsurgeonError]()
    with example_run(reading.model):
        for way in reversed(ways) if _lacks_a_dimension(first, example_inputs) else ways:
            try:
                call_model(reading.model, _moved(next(way([first], reading)), _device(reading.model)))
                return way(data, reading)
            except (InputError, DataError) as error:
                errors.append(error)
    raise InputError(f"the data in {name} do not match the model: {errors[0]}") from errors[0]


def _has_numbers(data: Any) -> bool:
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


def _items(data: Any, name: str) -> Iterator[Any]:
    """What data in Python consist of, one after the other."""
    try:
        yield from (data[number] for number in range(len(data))) if _has_numbers(data) else data
    except KsurgeonError:
        raise
    except Exception as error:
        raise DataError(f"{name} broke off: {type(error).__name__}: {error}") from error


def _joined(data: Any, reading: Reading) -> Iterator[Any]:
    """Batches of what are examples."""
    return read_batches(open_source(data, None if _has_numbers(data) else reading.examples), reading)


def _separate(data: Any, reading: Reading) -> Iterator[Any]:
    """Batches of what are batches: as they are, or without labels where the model does not take them."""
    take: Callable[[Any], ExampleInputs] | None = None
    for item in _items(data, name_of(data)):
        batch = _plain(item)
        take = take or _without_labels(batch, reading)
        batch = take(batch)
        yield from _split(batch, reading.batch_size) if _size(batch) > reading.batch_size else [batch]


def _without_labels(first: ExampleInputs, reading: Reading) -> Callable[[Any], ExampleInputs]:
    """What the model takes of batches such as the first: all, or the first of two parts."""
    if isinstance(first, tuple) and len(first) == 2:
        with example_run(reading.model):
            part = _split(_moved(first, _device(reading.model)), reading.batch_size)[0]
            try:
                call_model(reading.model, part)
            except InputError:
                return lambda batch: _plain(batch[0])
    return lambda batch: batch


def _lacks_a_dimension(item: Any, example_inputs: ExampleInputs | None) -> bool:
    """Whether what data in Python consist of looks like an example, not a batch."""
    first, known = (next(iter(tensors_of(tree)), None) for tree in (_leaves(item), _leaves(example_inputs)))
    if first is None:
        return False
    return first.dim() < known.dim() if known is not None else first.is_floating_point() and first.dim() < 2


def _leaves(tree: Any) -> Any:
    return (
        dict(tree) if isinstance(tree, Mapping) else tree
    )  # a tokenizer's, whose tensors a tree does not see


def _image_size(example_inputs: ExampleInputs | None) -> tuple[int, ...] | None:
    tensors = tensors_of(_leaves(example_inputs))
    return next((tuple(t.shape[2:]) for t in tensors if t.dim() == 4 and t.is_floating_point()), None)


def _device(model: nn.Module) -> torch.device:
    first = next(iter([*model.parameters(), *model.buffers()]), None)
    return torch.device("cpu") if first is None else first.device


def _plain(batch: Any) -> ExampleInputs:
    if isinstance(batch, Mapping):  # a tokenizer's, too, whose tensors a tree does not see
        return dict(batch)
    if isinstance(batch, list):
        return tuple(batch)
    as_call(batch)
    return batch


def _moved(batch: Any, device: torch.device) -> ExampleInputs:
    moved: ExampleInputs = pytree.tree_map(
        lambda leaf: leaf.detach().to(device) if isinstance(leaf, Tensor) else leaf, _plain(batch)
    )
    return moved


def _sizes(batch: ExampleInputs) -> set[int]:
    return {t.shape[0] if t.dim() else 0 for t in tensors_of(as_call(batch))}


def _size(batch: ExampleInputs) -> int:
    return max(_sizes(batch), default=1) or 1


def _split(batch: ExampleInputs, size: int) -> list[ExampleInputs]:
    """Parts of ``size`` examples, along the first dimension that all tensors share."""
    if len(_sizes(batch)) != 1:
        return [batch]
    return [
        pytree.tree_map(lambda leaf, at=at: leaf[at : at + size] if isinstance(leaf, Tensor) else leaf, batch)
        for at in range(0, _size(batch), size)
    ]


def _fingerprint(batches: Sequence[ExampleInputs]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for leaf in pytree.tree_leaves(as_call(batch)):
            if isinstance(leaf, Tensor):
                digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
                digest.update(leaf.cpu().contiguous().view(torch.uint8).numpy().tobytes())
            else:
                digest.update(repr(leaf).encode())
    return digest.hexdigest()
