"""Merged and packed weights, kept as long as the factors they were made from stay what they were."""

import weakref
from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from ksurgeon.kernels.cpu.native import KINDS, Chain, Guard, fast
from ksurgeon.kernels.cpu.plan import FEW_ROWS, Kind, merge_for_training
from ksurgeon.kernels.cpu.tune import choose
from ksurgeon.kernels.permutation import permutation_of
from ksurgeon.kmatrix.merge import merge_counts
from ksurgeon.kmatrix.patterns import Pattern, check_chain

__all__ = ["Pack", "find_pack", "forget", "record_of"]

_EXACT = {torch.bfloat16: torch.float32, torch.float16: torch.float32}


_versions_of = attrgetter("_version")
_address_of, _is_contiguous = Tensor.data_ptr, Tensor.is_contiguous


class Pack:
    """What the kernels need of one list of factors, made when it is first asked for.

    It is valid while every factor is the same tensor object at the same address and version, with the same
    contents. The storages are held, so that an address cannot come to mean other memory; ``find_pack`` drops
    the pack when a factor dies, so that an id cannot come to mean another tensor.

    Contents are compared because writes through ``.data`` or NumPy move no version. With 32 vectors or more
    every byte of the factors is, and their strides; with fewer that would double the time of the product, so
    only 8 bytes in a dozen places of every factor are: a write elsewhere, or ``p.data = p.data.mT`` on square
    blocks, goes unseen until ``forget`` is called or 32 vectors come. What optimisers,
    ``copy_``, ``load_state_dict`` or new tensors change is always seen.

    A light pack serves training, where weights change with every step: it merges only what costs nothing.

    Attributes:
        light: whether it is one.
        record: what ``_fast.rows`` compares a call with and hands it on to, where that was compiled and calls
            may go there without further ado.
    """

    __slots__ = (
        "_chains",
        "_guard",
        "_ids",
        "_index",
        "_pointers",
        "_storages",
        "_versions",
        "light",
        "record",
    )

    def __init__(self, factors: Sequence[Tensor], light: bool) -> None:
        check_chain([Pattern.of(factor.shape) for factor in factors])
        if len({(factor.dtype, factor.device) for factor in factors}) > 1:
            raise ValueError(f"factors of one dtype and device are needed, got {[f.dtype for f in factors]}")
        if not factors[0].is_cpu:
            raise ValueError(f"the factors must be on the CPU as the vectors are, got {factors[0].device}")
        self.light = light
        self._ids = list(map(id, factors))
        known = not any([factor.is_inference() for factor in factors])
        self._versions = list(map(_versions_of, factors)) if known else None
        self._pointers = list(map(_address_of, factors))
        self._storages = [factor.untyped_storage() for factor in factors]
        self._guard = Guard(factors) if all([factor.is_contiguous() for factor in factors]) else None
        self._chains: dict[object, Chain] = {}
        self._index: Tensor | bool | None = None
        self.record: object = None

    @property
    def lasting(self) -> bool:
        """Whether changes of the factors can be seen at all: tensors of inference mode have no version."""
        return self._guard is not None and self._versions is not None

    def same_contents(self) -> bool:
        """Whether every factor holds what it held, however it was written to."""
        return self._guard is not None and not self._guard.changed()

    def matches(self, factors: Sequence[Tensor]) -> bool:
        """Whether the factors are those the pack was made from, unchanged."""
        return (
            list(map(id, factors)) == self._ids
            and list(map(_versions_of, factors)) == self._versions
            and list(map(_address_of, factors)) == self._pointers
            and (self._guard is None or all(map(_is_contiguous, factors)))
        )

    @torch.no_grad()
    def rows(self, factors: Sequence[Tensor], count: int) -> Chain:
        """For ``count`` vectors in rows."""
        kind: Kind = "few" if count < FEW_ROWS and not self.light else "rows"
        chain = self._chains.get(kind)
        if chain is None:
            counts = self.counts(factors, kind)
            chain = self._chains.get(("packed", counts))
            if chain is None:
                merged = merge_counts(_plain(factors), counts)
                # Records hold addresses of chains, so that none may be replaced: the first thread wins.
                chain = self._chains.setdefault(("packed", counts), Chain.packed(merged, self._guard))
                if self.light:
                    transposed = Chain.packed([factor.mH for factor in reversed(merged)])
                    self._chains.setdefault("transposed", transposed)
            chain = self._chains.setdefault(kind, chain)
            if fast is not None and not self.light and self.lasting:
                self._make_record(factors)
        return chain

    def _make_record(self, factors: Sequence[Tensor]) -> None:
        if self.index(factors) is not None:
            return
        known = [self._chains.get(kind) for kind in ("few", "rows")]
        chain = next(chain for chain in known if chain is not None)
        self.record = fast.record(
            tuple(factors),
            *(0 if chain is None else chain.address for chain in known),
            FEW_ROWS,
            chain.in_features,
            chain.out_features,
            KINDS[factors[0].dtype],
            factors[0].dtype,
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
            merged = merge_counts(_plain(factors), self.counts(factors, "columns"))
            chain = self._chains["columns"] = Chain.plain(merged, self._guard)
        return chain

    def counts(self, factors: Sequence[Tensor], kind: Kind) -> tuple[int, ...]:
        """How many neighbouring factors are merged into each step."""
        patterns = tuple(Pattern.of(factor.shape) for factor in factors)
        if self.light:
            return merge_for_training(patterns)
        return choose(patterns, _EXACT.get(factors[0].dtype, factors[0].dtype), kind)

    def index(self, factors: Sequence[Tensor]) -> Tensor | None:
        """The permutation p with ``y = x[p]`` if every factor is a permutation matrix."""
        if self._index is None:
            found = None if self.light else permutation_of(factors)
            self._index = False if found is None else found
        return self._index if isinstance(self._index, Tensor) else None


def _plain(factors: Sequence[Tensor]) -> list[Tensor]:
    """The factors in the dtype of the computation, with no graph behind them."""
    return [
        factor.detach().resolve_neg().resolve_conj().to(_EXACT.get(factor.dtype, factor.dtype))
        for factor in factors
    ]


_Table = dict[int, tuple[Pack, list[weakref.ref[Tensor]]]]
_PACKS: _Table = {}
_LIGHT_PACKS: _Table = {}


def find_pack(factors: Sequence[Tensor], light: bool = False) -> Pack:
    """The pack of these factors, made anew if one of them has changed since.

    The contents of the factors are compared where the pack is light; ``ks_rows`` and ``ks_columns`` do so
    themselves. Tensors made in inference mode have no version: they are packed again for every call.
    """
    key = id(factors[0])
    packs = _LIGHT_PACKS if light else _PACKS
    known = packs.get(key)
    if known is not None and known[0].matches(factors) and not (light and not known[0].same_contents()):
        return known[0]
    pack = Pack(factors, light)
    if pack.lasting:

        def drop(dead: weakref.ref[Tensor], packs: _Table = packs, key: int = key) -> None:
            entry = packs.get(key)
            if entry is not None and any(reference is dead for reference in entry[1]):
                del packs[key]

        packs[key] = (pack, [weakref.ref(factor, drop) for factor in factors])
    else:
        packs.pop(key, None)
    return pack


def record_of(first: Tensor) -> object:
    """The record of the pack kept for factors of which this is the first; it may be outdated. None if there
    is none."""
    known = _PACKS.get(id(first))
    return None if known is None else known[0].record


def forget(factors: Sequence[Tensor]) -> None:
    """Let go of what is kept for these factors (their storages among it)."""
    if factors:
        _PACKS.pop(id(factors[0]), None)
        _LIGHT_PACKS.pop(id(factors[0]), None)
