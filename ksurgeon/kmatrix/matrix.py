"""A learnable K-matrix, and any other chain of Kronecker-sparse factors, as a module."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Literal, Self, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ksurgeon.errors import StructureError
from ksurgeon.kernels import apply_chain, at_once, beside
from ksurgeon.kernels.activation import activate
from ksurgeon.kernels.eager import is_batched
from ksurgeon.kmatrix import initialise
from ksurgeon.kmatrix.held import factors_of
from ksurgeon.kmatrix.matrix_options import MatrixOptions
from ksurgeon.kmatrix.offload import fetched
from ksurgeon.kmatrix.permutation import permutation_
from ksurgeon.kmatrix.radix import Radix
from ksurgeon.kmatrix.rotations import Rotations
from ksurgeon.kmatrix.structured import StructuredMatrix
from ksurgeon.kmatrix.structures import Kaleidoscope, Structure
from ksurgeon.late import late
from ksurgeon.options import require_names
from ksurgeon.patterns.merge import merge_chain
from ksurgeon.patterns.pattern import axis_of, check_chain
from ksurgeon.patterns.rotated import patterns_of, sources_of
from ksurgeon.torch_private import has_any_global_hook

__all__ = ["KMatrix", "Start", "like_input", "multiply", "new_matrix", "resized"]

is_compiling = torch.compiler.is_compiling

Start = Literal["random", "orthogonal", "identity", "empty"]


class KMatrix(StructuredMatrix):
    """``out_features × in_features`` matrix held as a product of Kronecker-sparse factors.

    The default is the K-matrix ``S · (B₁B₁*)…(B_wB_w*) · Sᵀ`` of Dao et al. (ICLR 2020, definition
    2.4) on an inner size of ``expansion`` times the smaller side. Parameters are the factors, each of
    shape ``(a, d, b, c)``, in the order they are applied; always by their index in ``factors``, however they
    were registered. Parametrisations, pruning and the hooks of old reparametrisations of that list count.
    A ``Kaleidoscope`` with the parametrization "orthogonal" has ``Rotations`` in the place of that list.

    Args:
        in_features: size of the vectors taken.
        out_features: size of the vectors given; ``in_features`` if left out.
        width: number w of products BB*.
        expansion: ratio e of the inner size to the smaller side.
        radix: "auto", an integer, or the list of radices of a butterfly matrix.
        structure: any structure, in place of width, expansion and radix.
        groups: the matrix is block-diagonal with so many K-matrices of equal sizes.
        start: "random" (keeps the variance), "orthogonal", "identity" or "empty".
        device, dtype: of the parameters; any floating or complex dtype.

    Attributes:
        side: the low-rank matrix that is added to the chain, where the structure has one; else None.

    Raises:
        StructureError: sizes that the structure cannot have, or a dtype of integers.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        *,
        width: int = 1,
        expansion: int = 1,
        radix: Radix | Sequence[int] = "auto",
        structure: Structure | None = None,
        groups: int = 1,
        start: Start = "random",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        out_features = in_features if out_features is None else out_features
        if groups < 1 or in_features % groups or out_features % groups:
            raise StructureError(f"{groups} groups do not divide {in_features} → {out_features}")
        if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
            raise StructureError(
                f"a K-matrix has floating or complex numbers, got dtype={dtype}; give dtype=torch.float32, "
                "or weight.float() in place of a weight of integers"
            )
        if structure is None:
            structure = _kaleidoscope(width, expansion, radix)
        super().__init__(in_features, out_features, structure, groups)
        block = check_chain(structure.patterns(in_features // groups, out_features // groups))
        self.patterns = tuple(pattern._replace(a=pattern.a * groups) for pattern in block)
        self.factors: nn.ParameterList | Rotations
        if isinstance(structure, Kaleidoscope) and structure.parametrization == "orthogonal":
            self.factors = Rotations(self.patterns, structure.width, device, dtype)
        else:
            self.factors = nn.ParameterList(
                nn.Parameter(torch.empty(pattern.shape, device=device, dtype=dtype))
                for pattern in self.patterns
            )
        names = tuple(self.factors._parameters)
        self._sources = itemgetter(*names) if len(names) > 1 else _only_source
        self._padded = self.is_padded
        self.side: KMatrix | None = None
        beside = structure.side(in_features // groups, out_features // groups)
        if beside is not None:
            self.side = KMatrix(
                in_features,
                out_features,
                structure=beside,
                groups=groups,
                start="empty",
                device=device,
                dtype=dtype,
            )
        self.reset_parameters(start)

    @classmethod
    def from_permutation(cls, permutation: Sequence[int] | Tensor, **options: Unpack[MatrixOptions]) -> Self:
        """K-matrix of width 1 that equals ``x ↦ x[permutation]`` exactly; any length.

        ``options`` are those of the constructor.

        Raises:
            StructureError: ``permutation`` is no permutation of 0 … n−1.
            TypeError: an option that there is not.
        """
        index = torch.as_tensor(permutation)
        require_names("KMatrix.from_permutation", options, MatrixOptions.__annotations__)
        matrix = cls(len(index), start="empty", **options)
        permutation_(matrix, index)
        return matrix

    @classmethod
    def from_dense(cls, weight: Tensor, **options: Unpack[MatrixOptions]) -> Self:
        """K-matrix fitted to a dense matrix of shape ``(out_features, in_features)``.

        ``options`` are those of the constructor; dtype and device default to those of ``weight``.

        Raises:
            StructureError: sizes that the structure cannot have.
            TypeError: an option that there is not.
            WeightsError: a weight with NaN or infinite entries.
        """
        require_names("KMatrix.from_dense", options, MatrixOptions.__annotations__)
        options.setdefault("device", weight.device)
        options.setdefault("dtype", weight.dtype)
        matrix = cls(weight.shape[1], weight.shape[0], start="empty", **options)
        late("fit_on_data_")(matrix, None, weight, None, None)
        return matrix

    @property
    def is_padded(self) -> bool:
        """Whether the chain is wider than the matrix on either side."""
        return (self.patterns[0].in_features, self.patterns[-1].out_features) != (
            self.in_features,
            self.out_features,
        )

    @property
    def like(self) -> Tensor:
        """A tensor of the factors' dtype and on their device."""
        return sources_of(self._held())[0]

    @property
    def multiplications(self) -> int:
        """Multiplications per vector, before any merging."""
        beside = self.side.multiplications if self.side is not None else 0
        return sum(pattern.numel for pattern in self.patterns) + beside

    def reset_parameters(self, start: Start = "random") -> None:
        """Draw the factors anew, or make them the identity."""
        starts: dict[str, Callable[[Sequence[Tensor]], None]] = {
            "random": partial(initialise.random_, in_features=self.in_features),
            "orthogonal": initialise.orthogonal_,
            "identity": initialise.identity_,
            "empty": lambda factors: None,
        }
        if start not in starts:
            raise StructureError(f"start must be random, orthogonal, identity or empty, got {start!r}")
        if isinstance(self.factors, Rotations):
            self.factors.reset_parameters(start)
            return
        factors = list(self.factors)
        starts[start](factors)
        if self.side is None or start == "empty":
            return
        # At the start the path beside the chain has half of the variance, or, where the chain is to be
        # something definite, nothing.
        initialise.random_(list(self.side.factors), self.in_features)
        with torch.no_grad():
            if start == "random":
                for last in (factors[-1], self.side.factors[-1]):
                    last.mul_(0.5**0.5)
            else:
                self.side.factors[-1].zero_()

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        """Multiply the vectors along dimension ``dim`` of ``x`` by the matrix."""
        return self.affine(x, dim)

    def affine(
        self, x: Tensor, dim: int = -1, bias: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        """Multiply the vectors along dimension ``dim`` of ``x`` by the matrix, add ``bias``, and activate
        them as ``kernels.apply_chain`` does."""
        y = self._at_once(x, dim, bias, activation)
        if y is not None:
            return y
        factors = self._held()
        if self.side is not None:
            if self._trained_beside(self.side, dim):
                y = beside(x, factors, self.side._held(), bias)
                if y is not None:
                    return activate(y, activation)
            main = multiply(x, factors, dim, *self._sizes, self._padded, bias)
            return activate(main + self.side(x, dim), activation)
        return multiply(x, factors, dim, *self._sizes, self._padded, bias, activation)

    def _at_once(
        self, x: Tensor, dim: int, bias: Tensor | None = None, activation: str | None = None
    ) -> Tensor | None:
        """The product if a backend can have it from what the factors are, or are computed from; else None."""
        held: nn.Module = self._modules["factors"]  # type: ignore[assignment]
        if self._padded or self.side is not None or held._forward_pre_hooks or is_compiling():
            return None
        try:
            sources = self._sources(held._parameters)
        except KeyError:  # those that are left may be a chain of their own
            return None
        return at_once(x, sources, bias, dim, activation)

    def _held(self) -> Sequence[Tensor]:
        factors = factors_of(self._modules["factors"], len(self.patterns))  # type: ignore[arg-type]
        return fetched(self.factors) if sources_of(factors)[0].is_meta else factors

    def _trained_beside(self, side: nn.Module, dim: int) -> bool:
        """Whether ``beside`` is to be asked: gradients are wanted, and nobody sees that the path beside the
        chain is not called as a module."""
        return (
            torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and type(dim) is int
            and dim == -1
            and type(side) is KMatrix
            and not (self._padded or side._padded or "forward" in side.__dict__)
            and not (side._forward_hooks or side._forward_pre_hooks)
            and not (side._backward_hooks or side._backward_pre_hooks)
            and not has_any_global_hook()
        )

    def transposed(self, x: Tensor, dim: int = -1) -> Tensor:
        """Multiply by the transposed matrix."""
        factors = tuple(factor.mT for factor in reversed(tuple(self._held())))
        y = multiply(x, factors, dim, self.groups, self.out_features, self.in_features)
        return y if self.side is None else y + self.side.transposed(x, dim)

    def adjoint(self, x: Tensor, dim: int = -1) -> Tensor:
        """Multiply by the conjugate transpose."""
        factors = tuple(factor.mH for factor in reversed(tuple(self._held())))
        y = multiply(x, factors, dim, self.groups, self.out_features, self.in_features)
        return y if self.side is None else y + self.side.adjoint(x, dim)

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self.groups, self.in_features, self.out_features

    def merged(self, max_radix: int = 32) -> list[Tensor]:
        """Factors of a chain equal to ``factors``, neighbours multiplied out where that saves work."""
        return merge_chain(list(self._held()), max_radix)

    def to_dense(self) -> Tensor:
        """The matrix, ``(out_features, in_features)``, differentiable in the factors."""
        like, narrow = self.like, min(self.in_features, self.out_features)
        basis = torch.eye(narrow, dtype=like.dtype, device=like.device)
        return self.transposed(basis) if self.out_features < self.in_features else self(basis, 0)

    def extra_repr(self) -> str:
        first, last = self.patterns[0], self.patterns[-1]
        parts = [f"in_features={self.in_features}, out_features={self.out_features}, {self.structure}"]
        if self.groups > 1:
            parts.append(f"groups={self.groups}")
        if self.is_padded:
            parts.append(f"padded to {first.in_features} → {last.out_features}")
        return ", ".join(parts)


def _only_source(parameters: Mapping[str, Any]) -> tuple[Any]:
    return (parameters["0"],)


def new_matrix(
    in_features: int,
    out_features: int,
    *,
    structure: Structure | None,
    groups: int = 1,
    start: Start = "random",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **widths: Any,
) -> StructuredMatrix:
    """A matrix of any structure; the arguments are those of ``KMatrix``, ``widths`` its first three."""
    if structure is not None:
        options: dict[str, Any] = {"groups": groups, "start": start, "device": device, "dtype": dtype}
        own = structure.new_matrix(in_features, out_features, **options)
        if own is not None:
            if not isinstance(own, StructuredMatrix):
                raise StructureError(f"new_matrix of {structure!r} gives no StructuredMatrix, but {own!r}")
            return own
    return KMatrix(
        in_features,
        out_features,
        structure=structure,
        groups=groups,
        start=start,
        device=device,
        dtype=dtype,
        **widths,
    )


def _kaleidoscope(width: int, expansion: int, radix: Radix | Sequence[int]) -> Kaleidoscope:
    radix = radix if isinstance(radix, (int, str)) else tuple(radix)
    if min(width, expansion) < 1:
        raise StructureError(f"width and expansion must be at least 1, got {width} and {expansion}")
    if (isinstance(radix, str) and radix != "auto") or (isinstance(radix, int) and radix < 2) or not radix:
        raise StructureError(
            f"radix must be 'auto', an integer of at least 2 or a list of them, got {radix!r}"
        )
    return Kaleidoscope(width=width, expansion=expansion, radix=radix)


@torch.fx.wrap
def multiply(
    x: Tensor,
    factors: Sequence[Tensor],
    dim: int,
    groups: int,
    in_features: int,
    out_features: int,
    padded: bool = True,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Pad, apply the chain, crop, add the bias, activate; each of ``groups`` blocks is padded and cropped.

    ``padded`` is False only where the chain is known to have the sizes of the map.
    """
    if not x.dim() or x.shape[axis_of(dim, x.dim())] != in_features:
        raise ValueError(
            f"expected {in_features} entries along dimension {dim}, got a tensor of shape {tuple(x.shape)}"
        )
    if not x.is_complex() and (first := sources_of(factors)[0]).is_complex():
        x = x.to(first.dtype)
    if not padded:
        return apply_chain(x, factors, dim, bias, activation)
    dim = dim % x.dim()
    patterns = patterns_of(factors)
    chain_in, chain_out = patterns[0].in_features, patterns[-1].out_features
    x = resized(x, dim, groups, chain_in)
    if chain_out == out_features:
        return apply_chain(x, factors, dim, bias, activation)
    y = resized(apply_chain(x, factors, dim), dim, groups, out_features)
    y = y if bias is None else y + bias.to(y.dtype).view(-1, *[1] * (y.dim() - dim - 1))
    return activate(y, activation)


@torch.fx.wrap
def like_input(y: Tensor, x: Tensor) -> Tensor:
    """``y`` in the memory format of ``x``: channels last where ``x`` is that and nothing else."""
    if not x.is_contiguous() and not is_batched(x):  # vmap knows no memory formats
        for dims, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if x.dim() == dims and x.is_contiguous(memory_format=memory_format):
                return y.contiguous(memory_format=memory_format)
    return y.contiguous()


def resized(x: Tensor, dim: int, groups: int, size: int) -> Tensor:
    """Pad with zeros or crop each of ``groups`` blocks along ``dim`` so that they add up to ``size``."""
    if x.shape[dim] == size:
        return x
    blocks, wanted = x.unflatten(dim, (groups, -1)), size // groups
    missing = wanted - blocks.shape[dim + 1]
    if missing > 0:
        return F.pad(blocks, [0, 0] * (x.dim() - dim - 1) + [0, missing]).flatten(dim, dim + 1)
    return blocks.narrow(dim + 1, 0, wanted).flatten(dim, dim + 1)
