"""Which dimensions of the inputs an exported program leaves open."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ksurgeon.find.inputs import ExampleInputs, as_call, repeat_single_example
from ksurgeon.torch_private import pytree

__all__ = ["attempts", "for_export", "fresh", "variants"]


def for_export(example_inputs: ExampleInputs) -> ExampleInputs:
    """A batch of two: a size of one would be taken for fixed."""
    return repeat_single_example(example_inputs)


def fresh(inputs: ExampleInputs) -> ExampleInputs:
    """Copies: an exporter leaves marks on the tensors it is given, which the next one would obey."""
    copies: ExampleInputs = pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs
    )
    return copies


def attempts(inputs: ExampleInputs) -> Iterator[tuple[str, Any]]:
    """What is left open, in words, and as dynamic shapes for torch.export; the most first."""
    args, kwargs = as_call(inputs)
    batch = torch.export.Dim.DYNAMIC
    if any(_is_text(name, value) for name, value in kwargs.items()):
        both = {
            name: {0: batch, 1: torch.export.Dim.DYNAMIC}
            if _is_text(name, value)
            else _only_batch(value, batch)
            for name, value in kwargs.items()
        }
        yield "batch and length", both
    yield "batch", _only_batch(kwargs, batch) if kwargs else _only_batch(args, batch)
    yield "nothing", None


def _is_text(name: str, value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dim() == 2
        and name in ("input_ids", "attention_mask", "token_type_ids")
    )


def _only_batch(tree: Any, batch: Any) -> Any:
    return pytree.tree_map(lambda leaf: {0: batch} if isinstance(leaf, Tensor) and leaf.dim() else None, tree)


def variants(inputs: ExampleInputs, opened: str) -> Iterator[ExampleInputs]:
    """Inputs to compare on: those given, and where the batch is open one, three and five others like them.

    Numbers are drawn anew; integers, which mean something, change their order only.
    """
    yield inputs
    if not opened.startswith("batch"):
        return
    generator = torch.Generator().manual_seed(0)
    for size in (1, 3, 5):

        def resized(leaf: Any, size: int = size) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.dim():
                return leaf
            if leaf.is_floating_point():
                return torch.randn(size, *leaf.shape[1:], generator=generator).to(leaf.dtype)
            return leaf[:1].repeat(size, *[1] * (leaf.dim() - 1)).roll(size, -1)

        changed: ExampleInputs = pytree.tree_map(resized, inputs)
        yield changed
