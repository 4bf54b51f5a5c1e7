"""Int8 factors by the library."""

import weakref
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ksurgeon.kernels.activation import check_activation
from ksurgeon.kernels.backend import Int8Chain
from ksurgeon.kernels.cpu.native import ACTIVATIONS, KINDS, Guard, fast, is_available, library
from ksurgeon.kernels.cpu.pack import comparison_of
from ksurgeon.kernels.cpu.quads import Quads
from ksurgeon.kernels.layout import FEWEST_COLUMNS, check_memory, in_rows, lies_in_rows, new_result
from ksurgeon.kernels.rounding import LONGEST
from ksurgeon.patterns.pattern import Pattern, axis_of, check_chain

__all__ = ["STORED", "forward", "multiplied", "shortly"]

STORED = (torch.float32, torch.bfloat16, torch.float16)
_TRIES = 3  # before nothing is compared, where another thread writes to the factors
_threads = torch.get_num_threads
if is_available():
    _rows, _columns = library().ks_rows, library().ks_columns


class _Pack:
    """The weights in the library's form, as long as the tensors are the same and hold the same."""

    __slots__ = ("_guard", "_ids", "_pointers", "_references", "_shapes", "_versions", "chain", "record")

    def __init__(self, tensors: Sequence[Tensor], chains: Sequence[Int8Chain], guarded: bool = True) -> None:
        memory = [tensor.detach() for tensor in tensors]  # which no other thread can exchange
        _check(chains)
        for tensor in memory:
            check_memory(tensor, "an int8 factor")
        self._ids, self._versions = list(map(id, tensors)), _versions_of(tensors)
        self._pointers = [tensor.data_ptr() for tensor in memory]
        self._shapes = [tensor.shape for tensor in memory]
        size = sum(tensor.nbytes for tensor in memory)
        whole = 2 if len(self._versions) < len(tensors) else comparison_of(size)
        guard = guarded and all(tensor.is_contiguous() for tensor in memory)
        self._guard = Guard(memory, whole) if guard else None
        self.chain = Quads(chains, self._guard)
        self._references: list[weakref.ref[Tensor]] = []
        self.record = self._recorded(tensors, memory)

    def _recorded(self, tensors: Sequence[Tensor], memory: Sequence[Tensor]) -> object:
        """What ``_fast.product`` compares calls with, on vectors of the scales' dtype; None without it."""
        kind = tensors[1].dtype
        if fast is None or self._guard is None or kind not in STORED or len(self._versions) < len(tensors):
            return None
        return fast.record(
            tuple(tensors),
            tuple(
                (version, tensor.data_ptr(), *tensor.shape, *[0] * (4 - tensor.dim()), KINDS[tensor.dtype])
                for version, tensor in zip(self._versions, memory, strict=True)
            ),
            (self._guard, self.chain),
            self.chain.address,
            self.chain.address,
            0,
            self.chain.address,
            FEWEST_COLUMNS,
            0,
            self._guard.address,
            self.chain.in_features,
            self.chain.out_features,
            KINDS[kind],
            self._guard.comparison == 2,
        )

    def matches(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the tensors that it was made from, not written to since."""
        return (
            list(map(id, tensors)) == self._ids
            and _versions_of(tensors) == self._versions
            and [tensor.data_ptr() for tensor in tensors] == self._pointers
            and [tensor.shape for tensor in tensors] == self._shapes
            and all([tensor.is_contiguous() for tensor in tensors])
            and not any([tensor.is_neg() for tensor in tensors])
        )

    def keep(self, tensors: Sequence[Tensor]) -> None:
        """Keep it until one of the tensors dies."""
        if self._guard is None:
            return

        def drop(dead: weakref.ref[Tensor], key: int = self._ids[0]) -> None:
            known = _PACKS.get(key)
            if known is not None and any(reference is dead for reference in known._references):
                _PACKS.pop(key, None)

        self._references = [weakref.ref(tensor, drop) for tensor in tensors]
        _PACKS[self._ids[0]] = self


_PACKS: dict[int, _Pack] = {}


def _check(chains: Sequence[Int8Chain]) -> None:
    """Return once the library can have the factors."""
    for values, scale in [pair for chain in chains for pair in chain]:
        kinds = values.dtype is torch.int8 and scale.dtype.is_floating_point
        if not kinds or values.dim() != 4 or scale.shape != values.shape[:3] or not values.numel():
            raise ValueError(
                "a quantized factor is int8 of shape (a, d, b, c) with floating scales (a, d, b), got "
                f"{values.dtype} {tuple(values.shape)} and {scale.dtype} {tuple(scale.shape)}"
            )
        if not (values.is_cpu and scale.is_cpu):
            raise ValueError(f"the factors must be on the CPU as the vectors are, got {values.device}")
        if values.shape[3] > LONGEST:
            raise ValueError(f"sums of more than {LONGEST} products do not fit 32 bits: {values.shape[3]}")
    ends = []
    for chain in chains:
        patterns = check_chain(tuple(Pattern.of(values.shape) for values, _ in chain))
        ends.append((patterns[0].in_features, patterns[-1].out_features))
    if len(set(ends)) > 1:
        raise ValueError(f"two chains of equal sizes are needed, got {ends}")


def _versions_of(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor._version for tensor in tensors if not tensor.is_inference()]


def shortly(
    x: Tensor, tensors: tuple[Tensor, ...], bias: Tensor | None, dim: int, activation: str | None
) -> Tensor | None:
    """The product along ``dim`` if it can be had at once, in one call of ``_fast``, else None.

    ``tensors`` are values and scales of all factors in order.
    """
    pack, code = _PACKS.get(id(tensors[0])), ACTIVATIONS.get(activation, -1)
    if pack is None or pack.record is None or code < 0:
        return None
    y: Tensor | None = fast.product(x, tensors, bias, pack.record, code, _threads(), dim)
    return y


def forward(
    x: Tensor,
    first: Int8Chain,
    second: Int8Chain,
    bias: Tensor | None,
    activation: str | None,
    dim: int = -1,
) -> Tensor:
    """What ``apply_int8`` gives, of plain tensors on the CPU; no gradients, no modes.

    Raises:
        ValueError: the sizes of input or bias are not the chains', or there is no such activation.
        MemoryError: there is no memory for the intermediate vectors.
        RuntimeError: the memory of an argument has been freed.
    """
    code = ACTIVATIONS.get(activation, -1)
    if code < 0:
        check_activation(activation)
    if x.dtype not in (*STORED, torch.float64):
        raise ValueError(f"vectors of a real floating dtype are needed, got {x.dtype}")
    tensors = [tensor for pair in (*first, *second) for tensor in pair]
    given = x.dtype
    x = x if given in STORED else x.float()
    chains = (first, second) if second else (first,)
    for attempt in range(_TRIES + 1):
        pack = _PACKS.get(id(tensors[0]))
        if pack is None or not pack.matches(tensors) or attempt == _TRIES:
            pack = _Pack(tensors, chains, guarded=attempt < _TRIES)
            pack.keep(tensors)
        y = multiplied(pack.chain, x, dim, bias, code)
        if y is not None:
            break
        _PACKS.pop(id(tensors[0]), None)  # they have changed behind the back of their version counters
    assert y is not None  # nothing was compared
    return y if y.dtype is given else y.to(given)


def multiplied(chain: Quads, x: Tensor, dim: int, bias: Tensor | None, code: int) -> Tensor | None:
    """The product along ``dim`` by factors in the library's form, or None where they have changed since;
    ``code`` is a KsActivation. It raises what ``forward`` does."""
    x = x.detach().resolve_neg()
    check_memory(x, "the input")
    axis = axis_of(dim, x.dim())
    by_rows, lies_so = in_rows(x, axis), lies_in_rows(x, axis)
    source = (x.movedim(axis, -1) if by_rows else x).contiguous()
    if x.shape[axis] != chain.in_features:
        raise ValueError(f"the chain takes vectors of {chain.in_features} entries, got {x.shape[axis]}")
    start = None
    if bias is not None:
        bias = bias.detach().resolve_neg().to(x.dtype).contiguous()
        check_memory(bias, "the bias")
        if bias.shape != (chain.out_features,):
            raise ValueError(f"the bias must have shape ({chain.out_features},), got {tuple(bias.shape)}")
        start = bias.data_ptr()
    y = new_result(x, axis, chain.out_features, by_rows)
    rest = start, code, _threads(), KINDS[x.dtype]
    if by_rows:
        rows = x.numel() // chain.in_features
        status = _rows(chain.address, source.data_ptr(), chain.in_features, y.data_ptr(), rows, *rest)
    else:
        sizes = prod(x.shape[:axis]), prod(x.shape[axis + 1 :])
        status = _columns(chain.address, source.data_ptr(), y.data_ptr(), *sizes, *rest)
    if status < 0:
        raise MemoryError("not enough memory for the intermediate vectors of a product")
    return None if not status else y if lies_so or not by_rows else y.contiguous()
