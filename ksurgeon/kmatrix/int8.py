"""A matrix of int8 factors in the place of a ``KMatrix``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting

from ksurgeon.errors import StructureError, WeightsError
from ksurgeon.kernels.activation import activate
from ksurgeon.kernels.dispatch import int8_at_once, is_plain_only
from ksurgeon.kernels.eager import has_tangents
from ksurgeon.kernels.int8 import Int8Chain, apply_int8
from ksurgeon.kernels.layout import lies_in_rows
from ksurgeon.kernels.rounding import LONGEST, rounded
from ksurgeon.kmatrix.matrix import KMatrix, multiply, resized
from ksurgeon.kmatrix.structures import Structure
from ksurgeon.patterns.merge import merge_counts, merge_plan
from ksurgeon.patterns.pattern import Pattern, check_chain

__all__ = ["Int8Factors", "Int8Matrix", "quantized"]

_LARGEST_RADIX = 64
_MOVE = 0.6  # what scaling an entry between factors takes, in instructions that multiply 64 weights


class Int8Factors(nn.Module):
    """A chain of factors, each ``scale[a, d, b] · values[a, d, b, c]``, one scale for each output of a block.

    Buffers are ``values_0``, int8 from -127 to 127, ``scale_0``, a floating dtype, and so on.
    """

    def __init__(
        self,
        patterns: Sequence[Pattern],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.patterns = tuple(patterns)
        for number, pattern in enumerate(self.patterns):
            values = torch.zeros(pattern.shape, dtype=torch.int8, device=device)
            self.register_buffer(f"values_{number}", values)
            self.register_buffer(f"scale_{number}", torch.ones(pattern.shape[:3], dtype=dtype, device=device))

    @property
    def pairs(self) -> Int8Chain:
        """Values and scale of every factor, in the order they are applied."""
        held = tuple(self._buffers.values())
        return tuple(zip(held[::2], held[1::2], strict=True))  # type: ignore[return-value,arg-type]

    @property
    def numel(self) -> int:
        """Weights of all factors, without their scales."""
        return sum(pattern.numel for pattern in self.patterns)

    def dequantized(self) -> list[Tensor]:
        """The factors ``(a, d, b, c)`` in the dtype of the scales."""
        return [values.to(scale.dtype) * scale.unsqueeze(-1) for values, scale in self.pairs]

    @torch.no_grad()
    def set_(self, factors: Sequence[Tensor]) -> None:
        """Quantize factors of these patterns, each output of a block by its largest weight."""
        for (values, scale), factor in zip(self.pairs, factors, strict=True):
            for held, new in zip((values, scale), rounded(factor, scale.dtype), strict=True):
                held.copy_(new)

    def extra_repr(self) -> str:
        return " · ".join(str(tuple(pattern)) for pattern in self.patterns)


class Int8Matrix(nn.Module):
    """``out_features × in_features`` matrix as one chain of int8 factors, or the sum of two.

    In inference the inputs of every factor are quantized as well, each vector by its largest entry (dynamic
    quantization), products are summed in int32, and a vector with an entry that is not finite gives NaN
    everywhere. Where gradients of the input are wanted, and in exported programs, the factors are
    dequantized. The weights cannot be trained.

    Args:
        in_features, out_features, groups: as of ``KMatrix``.
        structure: that the factors had before they were quantized.
        chains: patterns of the chain, and of the one beside it, if there is one.
        device, dtype: of the scales; a real floating dtype.

    Attributes:
        was_trained: whether the weights wanted gradients before they were quantized.

    Raises:
        StructureError: the chains do not fit the sizes, a block has too many inputs for sums of 32 bits
            (66,311), or the dtype is complex.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        groups: int,
        structure: Structure,
        chains: Sequence[Sequence[Pattern]],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not dtype.is_floating_point:
            raise StructureError(f"int8 weights stand for real numbers, got {dtype}; leave this layer out")
        if not 1 <= len(chains) <= 2:
            raise StructureError(f"one chain or the sum of two can be in int8, got {len(chains)}")
        self.in_features, self.out_features, self.groups = in_features, out_features, groups
        self.structure, self.was_trained = structure, True
        self.chains = tuple(check_chain(tuple(Pattern(*pattern) for pattern in chain)) for chain in chains)
        for chain in self.chains:
            wide = chain[0].in_features, chain[-1].out_features
            if wide[0] < in_features or wide[1] < out_features or wide[0] % groups or wide[1] % groups:
                raise StructureError(
                    f"a chain {wide[0]} → {wide[1]} does not fit {in_features} → {out_features}"
                )
        if any(pattern.c > LONGEST for chain in self.chains for pattern in chain):
            raise StructureError(
                f"sums of more than {LONGEST} products do not fit 32 bits; leave this layer out"
            )
        self.factors = Int8Factors(self.chains[0], device, dtype)
        self.side = Int8Factors(self.chains[1], device, dtype) if len(chains) > 1 else None
        sizes = [(c[0].in_features, c[-1].out_features) for c in self.chains]
        self._padded = set(sizes) != {(in_features, out_features)}

    @property
    def like(self) -> Tensor:
        """A tensor of its dtype and on its device."""
        return self.factors._buffers["scale_0"]  # type: ignore[return-value]

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        """Multiply the vectors along dimension ``dim`` of ``x`` by the matrix."""
        return self.affine(x, dim)

    def affine(
        self, x: Tensor, dim: int = -1, bias: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        """Multiply the vectors along dimension ``dim`` of ``x`` by the matrix, add ``bias``, activate."""
        if not self._padded and not torch.compiler.is_compiling() and not is_plain_only():
            y = int8_at_once(x, self._tensors(), bias, dim, activation)
            if y is not None:
                return y
        differentiated = (torch.is_grad_enabled() and x.requires_grad) or has_tangents()
        if differentiated or is_plain_only():
            return self._dequantized(x, dim, bias, activation)
        own = self.factors.pairs
        beside = () if self.side is None else self.side.pairs
        if not x.dim() or x.shape[dim] != self.in_features:
            raise ValueError(
                f"expected {self.in_features} entries along dimension {dim}, got a tensor of shape "
                f"{tuple(x.shape)}"
            )
        if bias is not None and bias.requires_grad and torch.is_grad_enabled():
            y = self.affine(x, dim)
            return activate(y + bias.to(y.dtype).view(-1, *[1] * (y.dim() - 1 - dim % y.dim())), activation)
        axis = dim % x.dim()
        # Exported programs have a node for rows alone, and padding is slow between them.
        if axis < x.dim() - 1 and (is_exporting() or (self._padded and lies_in_rows(x, axis))):
            return self.affine(x.movedim(axis, -1), -1, bias, activation).movedim(-1, axis)
        if not self._padded:
            return apply_int8(x, own, beside, bias, activation, axis)
        parts = [self._padded_product(x, chain, axis) for chain in (own, beside) if chain]
        y = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        y = y if bias is None else y + bias.to(y.dtype).view(-1, *[1] * (y.dim() - 1 - axis))
        return activate(y, activation)

    def _tensors(self) -> tuple[Tensor, ...]:
        # Looked up here: an attribute of a module takes as long as a small kernel.
        own: Any = self._modules["factors"]
        side: Any = self._modules.get("side")
        held: tuple[Tensor, ...] = tuple(own._buffers.values())
        return held if side is None else (*held, *side._buffers.values())

    def _padded_product(self, x: Tensor, chain: Int8Chain, axis: int) -> Tensor:
        wide = chain[0][0].shape[0] * chain[0][0].shape[3] * chain[0][0].shape[1]
        y = apply_int8(resized(x, axis, self.groups, wide), chain, dim=axis)
        return resized(y, axis, self.groups, self.out_features)

    def _dequantized(self, x: Tensor, dim: int, bias: Tensor | None, activation: str | None) -> Tensor:
        sizes = self.groups, self.in_features, self.out_features
        y = multiply(x, [f.to(x.dtype) for f in self.factors.dequantized()], dim, *sizes, True, bias)
        if self.side is not None:
            y = y + multiply(x, [f.to(x.dtype) for f in self.side.dequantized()], dim, *sizes)
        return activate(y, activation)

    def to_dense(self) -> Tensor:
        """The matrix, ``(out_features, in_features)``, of the dequantized factors."""
        parts = [self._dense(f) for f in (self.factors, self.side) if f is not None]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def _dense(self, held: Int8Factors) -> Tensor:
        factors, like = held.dequantized(), self.like
        if len(factors) == 1 and factors[0].shape[:2] == (1, 1) and not self._padded:
            return factors[0][0, 0]
        ins, outs = self.in_features, self.out_features
        basis = torch.eye(min(ins, outs), dtype=like.dtype, device=like.device)
        if ins <= outs:
            return multiply(basis, factors, 0, self.groups, ins, outs)
        return multiply(basis, [f.mT for f in reversed(factors)], -1, self.groups, outs, ins)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.structure}, int8" + (
            f", groups={self.groups}" if self.groups > 1 else ""
        )


@torch.no_grad()
def quantized(matrix: KMatrix) -> Int8Matrix:
    """The matrix in int8: neighbouring factors are multiplied out where that is faster, then quantized.

    Raises:
        StructureError: its numbers are complex.
        WeightsError: one of them is not finite.
    """
    chains = [list(matrix._held())] + ([list(matrix.side._held())] if matrix.side is not None else [])
    exact = [[factor.detach() for factor in chain] for chain in chains]
    if not all(bool(factor.isfinite().all()) for chain in exact for factor in chain):
        raise WeightsError("weights that are NaN or infinite cannot be quantized; load sound weights")
    like = exact[0][0]
    if like.is_complex():
        raise StructureError("complex factors cannot be quantized; leave this layer out")
    merged = [merge_counts([f.float() for f in chain], _counts(chain)) for chain in exact]
    new = Int8Matrix(
        matrix.in_features,
        matrix.out_features,
        groups=matrix.groups,
        structure=matrix.structure,
        chains=[[Pattern.of(factor.shape) for factor in chain] for chain in merged],
        device=like.device,
        dtype=like.dtype,
    )
    new.factors.set_(merged[0])
    if new.side is not None:
        new.side.set_(merged[1])
    new.was_trained = any(parameter.requires_grad for parameter in matrix.parameters())
    return new.train(matrix.training)


def _cost(pattern: Pattern) -> float:
    """Of a factor on one vector: lanes of four weights, sixteen at a time, and scaling inputs and outputs."""
    return pattern.numel / 64 + _MOVE * (pattern.in_features + pattern.out_features)


def _counts(factors: Sequence[Tensor]) -> tuple[int, ...]:
    patterns = [Pattern.of(factor.shape) for factor in factors]
    return merge_plan(patterns, _LARGEST_RADIX, _cost)
