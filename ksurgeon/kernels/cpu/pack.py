"""Merged and packed weights, kept as long as the factors they were made from stay what they were."""

import weakref
from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from ksurgeon.kernels.cpu.library import Chain, Guard, library
from ksurgeon.kernels.cpu.plan import merge_for_columns, merge_for_rows
from ksurgeon.kmatrix.merge import merge_counts
from ksurgeon.kmatrix.patterns import Pattern

__all__ = ["Pack", "find_pack", "forget"]

_EXACT = {torch.bfloat16: torch.float32, torch.float16: torch.float32}


_versions_of = attrgetter("_version")
_address_of = Tensor.data_ptr


class Pack:
    """What the kernels need of one list of factors, made when it is first asked for.

    It is valid while every factor is the same tensor object at the same address and version, with the same
    contents. The storages are held, so that an address cannot come to mean other memory; ``find_pack`` drops
    the pack when a factor dies, so that an id cannot come to mean another tensor.

    Attributes:
        ready: the chain for rows, once it has been made and if calls may go to it without further ado.
    """

    __slots__ = ("_columns", "_guard", "_ids", "_index", "_pointers", "_rows", "_storages", "_transposed", "_versions", "ready")

    def __init__(self, factors: Sequence[Tensor]) -> None:
        self._ids = list(map(id, factors))
        known = not any([factor.is_inference() for factor in factors])
        self._versions = list(map(_versions_of, factors)) if known else None
        self._pointers = list(map(_address_of, factors))
        self._storages = [factor.untyped_storage() for factor in factors]
        self._guard = Guard(factors) if all([factor.is_contiguous() for factor in factors]) else None
        self._rows: Chain | None = None
        self._columns: Chain | None = None
        self._transposed: Chain | None = None
        self._index: Tensor | bool | None = None
        self.ready: Chain | None = None

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
        )

    def rows(self, factors: Sequence[Tensor]) -> Chain:
        """For vectors in rows."""
        if self._rows is None:
            self._rows = Chain.packed(merged_for_rows(factors), self._guard)
            if factors[0].dtype not in _EXACT and self.index(factors) is None:
                self.ready = self._rows
        return self._rows

    def transposed(self, factors: Sequence[Tensor]) -> Chain:
        """The transposed chain of ``rows``, for gradients."""
        if self._transposed is None:
            self._transposed = Chain.packed([factor.mT for factor in reversed(merged_for_rows(factors))])
        return self._transposed

    def columns(self, factors: Sequence[Tensor]) -> Chain:
        """For vectors in columns."""
        if self._columns is None:
            plain = _plain(factors)
            counts = merge_for_columns(_patterns(plain), _lanes(plain))
            self._columns = Chain.plain(merge_counts(plain, counts), self._guard)
        return self._columns

    def index(self, factors: Sequence[Tensor]) -> Tensor | None:
        """The permutation p with ``y = x[p]`` if every factor is a permutation matrix."""
        if self._index is None:
            found = _permutation(factors)
            self._index = False if found is None else found
        return self._index if isinstance(self._index, Tensor) else None


def _plain(factors: Sequence[Tensor]) -> list[Tensor]:
    """The factors in the dtype of the computation, with no graph behind them."""
    return [factor.detach().to(_EXACT.get(factor.dtype, factor.dtype)) for factor in factors]


def _patterns(factors: Sequence[Tensor]) -> tuple[Pattern, ...]:
    return tuple(Pattern.of(factor.shape) for factor in factors)


def _lanes(factors: Sequence[Tensor]) -> int:
    return int(library().ks_lanes(factors[0].dtype == torch.float64))


def counts_for_rows(factors: Sequence[Tensor]) -> tuple[int, ...]:
    """How the factors are merged for rows."""
    lanes = library().ks_lanes(factors[0].dtype == torch.float64)
    return merge_for_rows(_patterns(factors), int(lanes))


@torch.no_grad()
def merged_for_rows(factors: Sequence[Tensor]) -> list[Tensor]:
    """The merged factors themselves."""
    return merge_counts(_plain(factors), counts_for_rows(factors))


@torch.no_grad()
def _permutation(factors: Sequence[Tensor]) -> Tensor | None:
    for factor in factors:
        if factor.shape[-1] != factor.shape[-2]:
            return None
        one = factor == 1
        if not bool(((one | (factor == 0)).all() & (one.sum(-1) == 1).all() & (one.sum(-2) == 1).all())):
            return None
    index = torch.arange(Pattern.of(factors[0].shape).in_features, device=factors[0].device)
    for factor in factors:
        a, d, b, c = factor.shape
        taken = factor.argmax(-1).transpose(1, 2)  # (a, b, d): the input i that output o takes
        index = index.view(a, c, d).gather(1, taken).flatten()
    return index


_PACKS: dict[int, tuple[Pack, list[weakref.ref[Tensor]]]] = {}


def find_pack(factors: Sequence[Tensor], compare: bool = False) -> Pack:
    """The pack of these factors, made anew if one of them has changed since.

    With ``compare`` the contents of the factors are compared too; ``ks_rows`` and ``ks_columns`` do so
    themselves. Tensors made in inference mode have no version: they are packed again for every call.
    """
    key = id(factors[0])
    known = _PACKS.get(key)
    if known is not None and known[0].matches(factors) and not (compare and not known[0].same_contents()):
        return known[0]
    pack = Pack(factors)
    if pack.lasting:

        def drop(dead: weakref.ref[Tensor], key: int = key) -> None:
            entry = _PACKS.get(key)
            if entry is not None and any(reference is dead for reference in entry[1]):
                del _PACKS[key]

        _PACKS[key] = (pack, [weakref.ref(factor, drop) for factor in factors])
    else:
        _PACKS.pop(key, None)
    return pack


def forget(factors: Sequence[Tensor]) -> None:
    """Let go of what is kept for these factors (their storages among it)."""
    if factors:
        _PACKS.pop(id(factors[0]), None)
