"""Chains of int8 factors in the library's form."""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_int64, c_void_p

import torch
from torch import Tensor
from torch.nn import functional as F

from ksurgeon.kernels.cpu.native import KINDS, ChainStructure, Guard, Step, library
from ksurgeon.patterns.pattern import Pattern

__all__ = ["Quads"]


class _QuadStep(ctypes.Structure):
    """``KsQuadStep`` of chain.h."""

    _fields_ = [
        ("a", c_int64),
        ("d", c_int64),
        ("b", c_int64),
        ("c", c_int64),
        ("weight", c_void_p),
        ("start", c_void_p),
        ("scale", c_void_p),
    ]


class _Quads(ctypes.Structure):
    """``KsQuads`` of chain.h."""

    _fields_ = [
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("widest", c_int64),
        ("weights", c_int64),
        ("steps", c_int64 * 2),
        ("step", POINTER(_QuadStep)),
    ]


class Quads:
    """One chain of int8 factors, or the sum of two, in the library's form; keeps the memory of its weights.

    Args:
        chains: one or two, of equal sizes on both ends: for each factor its values, int8 of shape
            ``(a, d, b, c)`` from -127 to 127, and the scales of its outputs, float32 of shape ``(a, d, b)``.
    """

    __slots__ = (
        "_guard",
        "_memory",
        "_quads",
        "_structure",
        "address",
        "in_features",
        "out_features",
        "steps",
    )

    def __init__(self, chains: Sequence[Sequence[tuple[Tensor, Tensor]]], guard: Guard | None = None) -> None:
        patterns = [[Pattern.of(values.shape) for values, _ in chain] for chain in chains]
        every = [pattern for chain in patterns for pattern in chain]
        self._guard, self._memory = guard, [_as_quads(*pair) for chain in chains for pair in chain]
        self.steps = (_QuadStep * len(every))(
            *(
                _QuadStep(p.a, p.d, p.b, p.c, *[tensor.data_ptr() for tensor in tensors])
                for p, tensors in zip(every, self._memory, strict=True)
            )
        )
        self.in_features, self.out_features = patterns[0][0].in_features, patterns[0][-1].out_features
        sizes = (
            self.in_features,
            self.out_features,
            max(max(p.a * p.d * -(-p.c // 4) * 4, p.out_features) for p in every),
            sum(pattern.numel for pattern in every),
        )
        self._quads = _Quads(*sizes, (c_int64 * 2)(*map(len, patterns)), self.steps)
        address, kind = ctypes.addressof(self._quads), KINDS[torch.int8]
        self._structure = ChainStructure(
            *sizes, 0, kind, None, None if guard is None else guard.address, address
        )
        self.address = ctypes.addressof(self._structure)


def _as_quads(values: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Packed weights, starts and scales, the latter in the order of outputs."""
    padded = F.pad(values, (0, -values.shape[-1] % 4))
    shape = (*padded.shape[:3], padded.shape[3] // 4)
    padded = padded.flatten().view(torch.int32)  # in channels_last some strides are 1 that count for nothing
    step, kind = Step(*shape, None, 1), KINDS[torch.float32]
    packed = padded.new_empty(library().ks_size(step, kind))
    library().ks_pack(step, padded.data_ptr(), packed.data_ptr(), kind)
    starts = values.sum(-1, dtype=torch.int32).mul_(-128).transpose(1, 2)  # (a, b, d)
    return packed, starts.contiguous(), scales.float().transpose(1, 2).contiguous()
