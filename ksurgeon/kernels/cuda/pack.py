"""Merged factors, kept for inference as long as the factors they were made from stay what they were."""

import weakref
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ksurgeon.kernels.cuda.digits import Whole, packed, whole_plan
from ksurgeon.kernels.cuda.merging import merge
from ksurgeon.kernels.cuda.plan import merge_for
from ksurgeon.kernels.layout import check_memory
from ksurgeon.patterns.merge import merge_counts
from ksurgeon.patterns.rotated import patterns_of, sources_of

__all__ = ["Way", "contiguous", "counts_of", "forget", "merged", "merged_once", "plan_of"]

Way = Literal["whole", "steps", "reference"]
"""A chain in one launch, in one for each merged factor, or by PyTorch's own operations."""

_Key = tuple[tuple[int, int, int, torch.Size, tuple[int, ...]], ...]


class _Made(NamedTuple):
    weights: list[Tensor]
    ready: torch.cuda.Event | None
    streams: set[int]


class _Pack(NamedTuple):
    key: _Key
    factors: list[weakref.ref[Tensor]]
    storages: list[torch.UntypedStorage]  # held, so that an address cannot come to mean other memory
    made: dict[str, _Made]


_PACKS: dict[int, _Pack] = {}


def counts_of(factors: Sequence[Tensor]) -> tuple[int, ...]:
    """How the factors are merged."""
    return merge_for(patterns_of(factors), sources_of(factors)[0].element_size())


def plan_of(factors: Sequence[Tensor]) -> Whole | None:
    """How a chain is applied in one launch, or None if its vectors are too long for that."""
    first = sources_of(factors)[0]
    if first.is_complex():
        return None
    return whole_plan(patterns_of(factors), first.element_size())


def contiguous(factors: Sequence[Tensor]) -> list[Tensor]:
    """The factors as the kernels take them, without a graph.

    Raises:
        RuntimeError: the memory of a factor has been freed.
    """
    factors = tuple(factors)
    for factor in factors:
        check_memory(factor, "a factor")
    return [factor.detach().resolve_conj().resolve_neg().contiguous() for factor in factors]


def merged(factors: Sequence[Tensor], way: Way) -> list[Tensor]:
    """The merged factors as a way to compute takes them, made anew: for "whole" they are one tensor."""
    plain = contiguous(factors)
    if way == "steps":
        return merge(plain, counts_of(factors))
    with torch.no_grad():
        dtype = plain[0].dtype
        wide = [factor.to(torch.promote_types(dtype, torch.float32)) for factor in plain]
        if way == "reference":
            return [step.to(dtype) for step in merge_counts(wide, counts_of(factors))]
        plan = plan_of(factors)
        assert plan is not None
        return [packed(wide, plan).to(dtype)]


def merged_once(factors: Sequence[Tensor], way: Way) -> list[Tensor]:
    """``merged``, kept while every factor is the same tensor of the same shape and strides, at the same
    address and version; of computed factors, every tensor that they are computed from.

    What evades the version counter (writes through ``.data``) is not seen; ``forget`` is for that. Tensors of
    inference mode have no version: theirs are made anew for every call.
    """
    sources = sources_of(factors)
    if any(source.is_inference() for source in sources):
        return merged(factors, way)
    key = tuple(
        (id(source), source._version, source.data_ptr(), source.shape, source.stride()) for source in sources
    )
    first = key[0][0]
    known = _PACKS.get(first)
    if known is not None and known.key == key:
        found = known.made.get(way)
        if found is not None:
            _wait(found)
            return found.weights
    weights, ready, streams = merged(factors, way), None, set()
    if sources[0].is_cuda:
        if torch.cuda.is_current_stream_capturing():
            return weights  # their memory is the graph's, and holds nothing until it is replayed
        stream = torch.cuda.current_stream()
        ready, streams = stream.record_event(), {stream.cuda_stream}
    if known is None or known.key != key:

        def drop(dead: weakref.ref[Tensor]) -> None:
            entry = _PACKS.get(first)
            if entry is not None and any(reference is dead for reference in entry.factors):
                _PACKS.pop(first, None)

        held = [source.untyped_storage() for source in sources]
        known = _PACKS[first] = _Pack(key, [weakref.ref(source, drop) for source in sources], held, {})
    known.made[way] = _Made(weights, ready, streams)
    return weights


def _wait(made: _Made) -> None:
    """Let a stream that sees weights for the first time wait for the one that made them."""
    if made.ready is None:
        return
    stream = torch.cuda.current_stream()
    if stream.cuda_stream in made.streams or torch.cuda.is_current_stream_capturing():
        return
    stream.wait_event(made.ready)
    for weight in made.weights:
        weight.record_stream(stream)
    made.streams.add(stream.cuda_stream)


def forget(factors: Sequence[Tensor]) -> None:
    """Let go of what is kept for these factors."""
    if factors:
        _PACKS.pop(id(sources_of(factors)[0]), None)
