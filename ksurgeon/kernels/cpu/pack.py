"""Merged and packed weights, kept as long as the factors they were made from stay what they were."""

import os
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from ksurgeon.errors import KsurgeonError
from ksurgeon.kernels.cpu.native import KINDS, Chain, Guard, computes, fast
from ksurgeon.kernels.cpu.plan import FEW_ROWS, Kind, merge_for_training
from ksurgeon.kernels.cpu.tune import choose
from ksurgeon.kernels.layout import FEWEST_COLUMNS, check_memory
from ksurgeon.kernels.permutation import permutation_of
from ksurgeon.patterns.merge import merge_counts
from ksurgeon.patterns.pattern import check_chain
from ksurgeon.patterns.rotated import patterns_of, sources_of

__all__ = ["Pack", "compare_all", "comparison_of", "find_pack", "forget", "record_of"]

_KINDS: tuple[Kind, ...] = ("few", "rows", "columns")
_EXACT = {torch.bfloat16: torch.float32, torch.float16: torch.float32}


_address_of, _is_contiguous = Tensor.data_ptr, Tensor.is_contiguous
_is_neg, _is_conj = Tensor.is_neg, Tensor.is_conj


_EVERYTHING = 512 << 10
"""Bytes of factors up to which all of them are compared in every product."""

_COMPARISONS = {"auto": None, "everything": 2, "versions": 0}


def comparison_of(size: int) -> int:
    """What is compared in products of few rows with factors of so many bytes (``KsComparison``)."""
    asked = os.environ.get("KSURGEON_COMPARE", "auto")
    if asked not in _COMPARISONS:
        raise KsurgeonError(f"KSURGEON_COMPARE={asked!r}: expected one of {', '.join(_COMPARISONS)}")
    chosen = _COMPARISONS[asked]
    return (2 if size <= _EVERYTHING else 1) if chosen is None else chosen


class Pack:
    """What the kernels need of one list of factors, made when it is first asked for.

    It is valid while every factor is the same tensor object at the same address, of the same shape, version
    and contents, and read as it was, negated or conjugated or as it is in memory; of computed factors, every
    tensor that they are computed from. Their memory is held, so that
    an address cannot come to mean another tensor's; ``find_pack`` drops the pack when a factor dies, so that
    an id cannot come to mean another tensor.

    Contents are compared because writes through ``.data``, NumPy or DLPack move no version. Where the factors
    take 512 KiB or less together, every byte is in every product, so that no result is stale, whatever wrote.
    Of larger ones every byte is compared with 32 vectors or more; with fewer a sixty-fourth of each, in
    turns: after a write that moves no version, 63 products at most still have the old weights. What
    optimisers, ``copy_``, ``load_state_dict`` or new tensors change is always seen at once.
    ``KSURGEON_COMPARE``, read when weights are packed, is "auto" for this, "everything" to compare all of
    factors of any size, or "versions" to compare nothing: ``forget`` then tells of such a write. Tensors that
    were made in inference mode have no version: all of their contents are compared in every product.

    A light pack serves training, where weights change with every step: it merges only what costs nothing,
    and all of its factors are compared.

    Args:
        guarded: False for factors that another thread is writing to: the pack is what they held just now.

    Raises:
        KsurgeonError: ``KSURGEON_COMPARE`` is none of the three.
        RuntimeError: the memory of a factor has been freed.
        ValueError: the factors differ in dtype or device, or are not on the CPU.

    Attributes:
        light: whether it is one.
        record: what ``_fast.product`` compares a call with and hands it on to, where that was compiled and
            calls may go there without further ado: not where a factor is read negated or conjugated.
    """

    __slots__ = (
        "_chains",
        "_guard",
        "_ids",
        "_index",
        "_marks",
        "_pointers",
        "_shapes",
        "_versions",
        "light",
        "record",
    )

    def __init__(self, factors: Sequence[Tensor], light: bool, guarded: bool = True) -> None:
        check_chain(patterns_of(factors))
        factors = sources_of(factors)
        if len({(factor.dtype, factor.device) for factor in factors}) > 1:
            raise ValueError(f"factors of one dtype and device are needed, got {[f.dtype for f in factors]}")
        if not factors[0].is_cpu:
            raise ValueError(f"the factors must be on the CPU as the vectors are, got {factors[0].device}")
        self.light = light
        self._ids = list(map(id, factors))
        self._versions = _versions_of(factors)
        memory = [factor.detach() for factor in factors]  # which no other thread can exchange
        for factor in memory:
            check_memory(factor, "a factor")
        self._pointers = list(map(_address_of, memory))
        self._shapes = [factor.shape for factor in memory]
        self._marks = _marks_of(memory)
        self._guard: Guard | None = None
        if guarded and all([factor.is_contiguous() for factor in memory]):
            size = sum([factor.nbytes for factor in memory])
            self._guard = Guard(memory, 2 if light or not self._has_versions else comparison_of(size))
        self._chains: dict[object, Chain] = {}
        self._index: Tensor | bool | None = None
        self.record: object = None

    @property
    def lasting(self) -> bool:
        """Whether changes of the factors can be seen at all."""
        return self._guard is not None

    @property
    def _has_versions(self) -> bool:
        return len(self._versions) == len(self._ids)

    def same_contents(self) -> bool:
        """Whether every factor holds what it held, however it was written to; without a guard the pack has
        just been made."""
        return self._guard is None or not self._guard.changed()

    def matches(self, factors: Sequence[Tensor]) -> bool:
        """Whether the factors are those the pack was made from, unchanged."""
        factors = sources_of(factors)
        return (
            list(map(id, factors)) == self._ids
            and _versions_of(factors) == self._versions
            and list(map(_address_of, factors)) == self._pointers
            and [factor.shape for factor in factors] == self._shapes
            and all(map(_is_contiguous, factors))
            and _marks_of(factors) == self._marks
        )

    @property
    def compares_a_part(self) -> bool:
        """Whether products of few rows compare a part of the contents at a time."""
        return self._guard is not None and self._guard.comparison == 1

    def _begin_chain(self) -> None:
        """All chains are of one state of the factors: where it is another one now, they are made anew."""
        if self._chains and not self.same_contents():
            assert self._guard is not None
            self._guard = self._guard.anew()
            self._chains, self._index, self.record = {}, None, None

    @torch.no_grad()
    def rows(self, factors: Sequence[Tensor], count: int) -> Chain:
        """For ``count`` vectors in rows."""
        kind: Kind = "few" if count < FEW_ROWS and not self.light else "rows"
        chain = self._chains.get(kind)
        if chain is None:
            self._begin_chain()
            counts = self.counts(factors, kind)
            chain = self._chains.get(("packed", counts))
            if chain is None:
                merged = merge_counts(_plain(factors), counts)
                if self.light:
                    transposed = Chain.packed([factor.mH for factor in reversed(merged)])
                    self._chains.setdefault("transposed", transposed)
                if not self.light:
                    merged = [factor.to(_computed(factors)) for factor in merged]
                chain = self._chains.setdefault(("packed", counts), Chain.packed(merged, self._guard))
            chain = self._chains.setdefault(kind, chain)
            self._record_chains(factors)
        return chain

    def _record_chains(self, factors: Sequence[Tensor]) -> None:
        if self.index(factors) is not None:
            return
        known: list[Chain | None] = []
        while known != (known := [self._chains.get(kind) for kind in _KINDS]):  # threads make them
            chain = next(chain for chain in known if chain is not None)
            addresses = [0 if chain is None else chain.address for chain in known]
            self._make_record(factors, known, addresses, 0, chain.in_features, chain.out_features)

    def _make_record(
        self,
        factors: Sequence[Tensor],
        read: Sequence[object],
        chains: Sequence[int],
        index: int,
        in_features: int,
        out_features: int,
    ) -> None:
        if fast is None or self.light or self._guard is None or not self._has_versions or any(self._marks):
            return
        sources = sources_of(factors)
        self.record = fast.record(
            tuple(sources),
            tuple(
                (version, address, *shape, *[0] * (4 - len(shape)), KINDS[sources[0].dtype])
                for version, address, shape in zip(self._versions, self._pointers, self._shapes, strict=True)
            ),
            (self._guard, *read),
            chains[0],
            chains[1],
            FEW_ROWS,
            chains[2],
            FEWEST_COLUMNS,
            index,
            self._guard.address,
            in_features,
            out_features,
            KINDS[sources[0].dtype],
            self._guard.comparison == 2,
        )

    def transposed(self, factors: Sequence[Tensor]) -> Chain:
        """The transposed chain of ``rows`` in a light pack, for gradients."""
        self.rows(factors, FEW_ROWS)
        return self._chains["transposed"]

    @torch.no_grad()
    def columns(self, factors: Sequence[Tensor]) -> Chain:
        """For vectors in columns."""
        chain = self._chains.get("columns")
        if chain is None:
            self._begin_chain()
            merged = merge_counts(_plain(factors), self.counts(factors, "columns"))
            chain = self._chains.setdefault("columns", Chain.plain(merged, self._guard))
            self._record_chains(factors)
        return chain

    def counts(self, factors: Sequence[Tensor], kind: Kind) -> tuple[int, ...]:
        """How many neighbouring factors are merged into each step."""
        patterns = patterns_of(factors)
        if self.light:
            return merge_for_training(patterns)
        dtype = sources_of(factors)[0].dtype
        return choose(patterns, _EXACT.get(dtype, dtype) if kind == "columns" else _computed(factors), kind)

    def index(self, factors: Sequence[Tensor]) -> Tensor | None:
        """The permutation p with ``y = x[p]`` if every factor is a permutation matrix."""
        if self._index is None:
            found = None if self.light else permutation_of(tuple(factors))
            self._index = False if found is None else found
            if found is not None:
                self._make_record(factors, [found], (0, 0, 0), found.data_ptr(), len(found), len(found))
        return self._index if isinstance(self._index, Tensor) else None


def _versions_of(factors: Sequence[Tensor]) -> list[int]:
    """Of those that have one: tensors that were made in inference mode have none."""
    return [factor._version for factor in factors if not factor.is_inference()]


def _marks_of(factors: Sequence[Tensor]) -> list[bool]:
    """Whether each factor is read negated, and whether conjugated."""
    return [*map(_is_neg, factors), *map(_is_conj, factors)]


def _computed(factors: Sequence[Tensor]) -> torch.dtype:
    """What rows are multiplied in."""
    dtype = sources_of(factors)[0].dtype
    return dtype if computes(dtype) else _EXACT.get(dtype, dtype)


def _plain(factors: Sequence[Tensor]) -> list[Tensor]:
    """The factors in single or double precision, with no graph behind them."""
    return [
        factor.detach().resolve_neg().resolve_conj().to(_EXACT.get(factor.dtype, factor.dtype))
        for factor in factors
    ]


_Table = dict[int, tuple[Pack, list[weakref.ref[Tensor]]]]
_PACKS: _Table = {}
_LIGHT_PACKS: _Table = {}


def find_pack(factors: Sequence[Tensor], light: bool = False) -> Pack:
    """The pack of these factors, made anew if one of them has changed since; raises what ``Pack`` does.

    The contents of the factors are compared where the pack is light; ``ks_rows`` and ``ks_columns`` do so
    themselves.
    """
    sources = sources_of(factors)
    key = id(sources[0])
    packs = _LIGHT_PACKS if light else _PACKS
    known = packs.get(key)
    if known is not None and known[0].matches(factors) and not (light and not known[0].same_contents()):
        return known[0]
    pack = Pack(factors, light)
    if pack.lasting:

        def drop(dead: weakref.ref[Tensor], packs: _Table = packs, key: int = key) -> None:
            entry = packs.get(key)
            if entry is not None and any(reference is dead for reference in entry[1]):
                packs.pop(key, None)

        packs[key] = (pack, [weakref.ref(source, drop) for source in sources])
    else:
        packs.pop(key, None)
    return pack


def compare_all(factors: Sequence[Tensor]) -> None:
    """Let go of what was packed if the factors hold anything else now, also where a product would compare a
    part of them: code made by ``torch.compile`` writes to tensors whose version changes when it ends."""
    known = _PACKS.get(id(sources_of(factors)[0]))
    if known is not None and known[0].compares_a_part and not known[0].same_contents():
        forget(factors)


def record_of(first: Tensor) -> object:
    """The record of the pack kept for factors of which this is the first, or is what they are computed from;
    it may be outdated. None if there is none."""
    known = _PACKS.get(id(first))
    return None if known is None else known[0].record


def forget(factors: Sequence[Tensor]) -> None:
    """Let go of what is kept for these factors (their storages among it)."""
    if factors:
        key = id(sources_of(factors)[0])
        _PACKS.pop(key, None)
        _LIGHT_PACKS.pop(key, None)
