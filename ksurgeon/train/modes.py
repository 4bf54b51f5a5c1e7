"""Modes of the modules of a student while it is trained."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ksurgeon.train.blocks import block_paths
from ksurgeon.train.norms import batch_norms
from ksurgeon.train.settings import Settings

__all__ = ["training_mode"]


@contextmanager
def training_mode(student: nn.Module, settings: Settings, has_teacher: bool) -> Iterator[None]:
    """Inside, the student is in the mode that the settings want; afterwards in that which it was in.

    With a teacher, dropout and stochastic depth are off: they would make the student learn another function.
    """
    before = [(module, module.training) for module in student.modules()]
    dropout = settings.dropout if settings.dropout is not None else not has_teacher
    student.train(dropout)
    for norm in batch_norms(student).values():
        norm.train(settings.batch_norm == "train")
    changed = _recomputing(student) if settings.checkpointing else []
    try:
        yield
    finally:
        for block in changed:
            del block.forward
        for module, training in before:
            module.training = training


def _recomputing(student: nn.Module) -> list[nn.Module]:
    """Let every block keep nothing for the backward pass but its inputs."""
    blocks = [student.get_submodule(path) for row in block_paths(student) for path in row]
    for block in blocks:
        block.forward = partial(_recompute, block.forward)  # type: ignore[method-assign]
    return blocks


def _recompute(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
