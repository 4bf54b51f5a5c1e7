"""Where calibration data come from, brought to batches that the model takes."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ksurgeon.errors import InputError
from ksurgeon.find.inputs import ExampleInputs, as_call, call_model, evaluating, tensors_of

__all__ = ["Batches", "Data", "open_data", "row_mask"]

Data = str | Path | Tensor | tuple[Any, ...] | Mapping[str, Any] | Iterable[Any] | Callable[[], Iterable[Any]]
"""One batch as a tensor, a tuple of positional or a mapping of keyword arguments; a list, loader or other
iterable of such batches, or a function that gives one; a folder of images, a text file, or the name
``package.module:function`` of such a function."""

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_HELD_OUT = 4  # one batch of so many is held out


@dataclass(frozen=True)
class Batches:
    """Batches to fit with, and others, held out, to judge with.

    Attributes:
        fit: inputs whose moments are taken.
        check: inputs on which changes of the outputs are measured; those of ``fit`` where there is one batch
            of one example in all.
        fingerprint: of all of them.
    """

    fit: list[ExampleInputs]
    check: list[ExampleInputs]
    fingerprint: str


def open_data(
    data: Data,
    model: nn.Module,
    *,
    examples: int = 512,
    batch_size: int = 16,
    tokenizer: str | None = None,
    length: int = 128,
) -> Batches:
    """Batches of at most ``examples`` examples, on the model's device, that the model is known to run on.

    Args:
        data: see ``Data``. Of the batches of a loader whose second part the model does not take (labels) the
            first part is used.
        model: the model they are for.
        examples: most examples taken; the rest is never read.
        batch_size: examples of a batch, where the data come without batches.
        tokenizer: folder of the tokenizer for a text file; the model's own if left out.
        length: most tokens of a line of a text file.

    Raises:
        InputError: no such data, none that the model runs on, or nothing in them.
    """
    found = _found(data, model, batch_size, tokenizer, length, examples)
    batches, taken = list[ExampleInputs](), 0
    place = _device(model)
    for batch in found:
        batch = _moved(batch, place)
        parts = _split(batch, batch_size) if _is_large(batch, batch_size) else [batch]
        for part in parts:
            batches.append(part)
            taken += _size(part)
        if taken >= examples:
            break
    if not batches:
        raise InputError(f"there are no data in {_name(data)}; give at least one example")
    batches = _accepted(batches, model)
    if len(batches) == 1 and _size(batches[0]) > 1:
        batches = _split(batches[0], -(-_size(batches[0]) // _HELD_OUT))
    check = batches[_HELD_OUT - 1 :: _HELD_OUT] or batches[-1:]
    held = {id(batch) for batch in check}
    fit = [batch for batch in batches if id(batch) not in held] or batches
    return Batches(fit, check, _fingerprint(batches))


def row_mask(batch: ExampleInputs) -> Tensor | None:
    """``attention_mask`` of a batch as booleans, ``(examples, positions)``; None without one or where it
    hides nothing."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if not isinstance(mask, Tensor) or mask.dim() != 2 or bool(mask.all()):
        return None
    return mask.bool()


def _found(
    data: Data, model: nn.Module, batch_size: int, tokenizer: str | None, length: int, examples: int
) -> Iterator[Any]:
    if isinstance(data, (str, Path)):
        path = Path(data)
        if path.is_dir():
            from ksurgeon.calibrate.images import image_batches

            return image_batches(path, model, batch_size, examples)
        if path.is_file():
            from ksurgeon.calibrate.text import text_batches

            return text_batches(path, model, batch_size, examples, tokenizer, length)
        if not _FUNCTION.fullmatch(str(data)):
            raise InputError(
                f"--data {data}: there is no such file or folder; give a text file, a folder of images, or "
                "package.module:function"
            )
        from ksurgeon.models.from_function import call_named

        data = call_named(str(data))
    if callable(data) and not isinstance(data, (Tensor, Mapping, Iterable)):
        data = data()
    if isinstance(data, (Tensor, tuple, Mapping)):
        return iter([data])
    if not isinstance(data, Iterable):
        raise InputError(
            "data are a tensor, a tuple or a mapping of the model's arguments, or an iterable of such "
            f"batches, got {type(data).__name__}"
        )
    return iter(data)


def _name(data: Data) -> str:
    return str(data) if isinstance(data, (str, Path)) else f"the {type(data).__name__} given"


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


def _is_large(batch: ExampleInputs, batch_size: int) -> bool:
    return len(_sizes(batch)) == 1 and _size(batch) > batch_size


def _split(batch: ExampleInputs, size: int) -> list[ExampleInputs]:
    """Parts of ``size`` examples, along the first dimension that all tensors share."""
    if len(_sizes(batch)) != 1:
        return [batch]
    return [
        pytree.tree_map(lambda leaf, at=at: leaf[at : at + size] if isinstance(leaf, Tensor) else leaf, batch)
        for at in range(0, _size(batch), size)
    ]


def _accepted(batches: Sequence[ExampleInputs], model: nn.Module) -> list[ExampleInputs]:
    """The batches as the model takes them: whole, or without their labels."""
    first = batches[0]
    with evaluating(model):
        try:
            call_model(model, first)
            return list(batches)
        except InputError as error:
            if not isinstance(first, tuple) or len(first) != 2:
                raise InputError(f"the data do not match the model: {error}") from error
            try:
                call_model(model, _plain(first[0]))
            except InputError:
                raise InputError(f"the data do not match the model: {error}") from error
    return [_plain(batch[0]) for batch in batches]  # type: ignore[index]


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
