"""Merged factors, kept for inference as long as the factors they were made from stay what they were."""

import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ksurgeon.kernels.cuda.digits import Whole, packed
from ksurgeon.kernels.cuda.merging import merge
from ksurgeon.kernels.cuda.plan import merge_for
from ksurgeon.kmatrix.patterns import Pattern

__all__ = ["contiguous", "counts_of", "forget", "merged", "merged_once"]

_Key = tuple[tuple[int, int, int], ...]


class _Pack(NamedTuple):
    key: _Key
    factors: list[weakref.ref[Tensor]]
    made: dict[bool, list[Tensor]]


_PACKS: dict[int, _Pack] = {}


def counts_of(factors: Sequence[Tensor]) -> tuple[int, ...]:
    """How the factors are merged."""
    return merge_for(tuple(Pattern.of(factor.shape) for factor in factors), factors[0].element_size())


def contiguous(factors: Sequence[Tensor]) -> list[Tensor]:
    """The factors as the kernels take them, without a graph."""
    return [factor.detach().resolve_conj().resolve_neg().contiguous() for factor in factors]


def merged(factors: Sequence[Tensor], plan: Whole | None = None) -> list[Tensor]:
    """The merged factors, made anew; one tensor of all of them for a ``plan`` to apply them at once."""
    plain = contiguous(factors)
    if plan is None:
        return merge(plain, counts_of(factors))
    with torch.no_grad():
        wide = [factor.to(torch.promote_types(factor.dtype, torch.float32)) for factor in plain]
        return [packed(wide, plan).to(factors[0].dtype)]


def merged_once(factors: Sequence[Tensor], plan: Whole | None = None) -> list[Tensor]:
    """``merged``, kept while every factor is the same tensor at the same address and version.

    What evades the version counter (writes through ``.data``) is not seen; ``forget`` is for that. Tensors of
    inference mode have no version: theirs are made anew for every call.
    """
    if any(factor.is_inference() for factor in factors):
        return merged(factors, plan)
    key = tuple((id(factor), factor._version, factor.data_ptr()) for factor in factors)
    first = key[0][0]
    known = _PACKS.get(first)
    if known is not None and known.key == key:
        found = known.made.get(plan is None)
        if found is not None:
            return found
    weights = merged(factors, plan)
    if factors[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return weights  # their memory is the graph's, and holds nothing until it is replayed
    if known is None or known.key != key:

        def drop(dead: weakref.ref[Tensor]) -> None:
            entry = _PACKS.get(first)
            if entry is not None and any(reference is dead for reference in entry.factors):
                del _PACKS[first]

        known = _PACKS[first] = _Pack(key, [weakref.ref(factor, drop) for factor in factors], {})
    known.made[plan is None] = weights
    return weights


def forget(factors: Sequence[Tensor]) -> None:
    """Let go of what is kept for these factors."""
    if factors:
        _PACKS.pop(id(factors[0]), None)
