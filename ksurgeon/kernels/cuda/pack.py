"""Merged factors, kept for inference as long as the factors they were made from stay what they were."""

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from ksurgeon.kernels.cuda.merging import merge
from ksurgeon.kernels.cuda.plan import merge_for
from ksurgeon.kmatrix.patterns import Pattern

__all__ = ["contiguous", "counts_of", "forget", "merged", "merged_once"]

_Key = tuple[tuple[int, int, int], ...]
_PACKS: dict[int, tuple[_Key, list[Tensor], list[weakref.ref[Tensor]]]] = {}


def counts_of(factors: Sequence[Tensor]) -> tuple[int, ...]:
    """How the factors are merged."""
    return merge_for(tuple(Pattern.of(factor.shape) for factor in factors), factors[0].element_size())


def contiguous(factors: Sequence[Tensor]) -> list[Tensor]:
    """The factors as the kernels take them, without a graph."""
    return [factor.detach().resolve_neg().contiguous() for factor in factors]


def merged(factors: Sequence[Tensor]) -> list[Tensor]:
    """The merged factors, made anew."""
    return merge(contiguous(factors), counts_of(factors))


def merged_once(factors: Sequence[Tensor]) -> list[Tensor]:
    """The merged factors, kept while every factor is the same tensor at the same address and version.

    What evades the version counter (writes through ``.data``) is not seen; ``forget`` is for that. Tensors of
    inference mode have no version: theirs are made anew for every call.
    """
    if any(factor.is_inference() for factor in factors):
        return merged(factors)
    key = tuple((id(factor), factor._version, factor.data_ptr()) for factor in factors)
    known = _PACKS.get(key[0][0])
    if known is not None and known[0] == key:
        return known[1]
    weights = merged(factors)
    if factors[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return weights  # their memory is the graph's, and holds nothing until it is replayed

    def drop(dead: weakref.ref[Tensor], first: int = key[0][0]) -> None:
        entry = _PACKS.get(first)
        if entry is not None and any(reference is dead for reference in entry[2]):
            del _PACKS[first]

    _PACKS[key[0][0]] = (key, weights, [weakref.ref(factor, drop) for factor in factors])
    return weights


def forget(factors: Sequence[Tensor]) -> None:
    """Let go of what is kept for these factors."""
    if factors:
        _PACKS.pop(id(factors[0]), None)
