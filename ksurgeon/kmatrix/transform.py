"""A learnable K-matrix in the place of a Fourier, cosine, Hadamard or circulant transform."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import sqrt
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ksurgeon.errors import StructureError
from ksurgeon.kernels.eager import is_eager
from ksurgeon.kmatrix.held import factors_of
from ksurgeon.kmatrix.kept import forget, kept
from ksurgeon.kmatrix.matrix import multiply
from ksurgeon.kmatrix.offload import fetched
from ksurgeon.kmatrix.radix import transform_radices
from ksurgeon.kmatrix.structures import Butterfly
from ksurgeon.kmatrix.transforms import (
    as_real,
    circulant_factors,
    dct_factors,
    dft_factors,
    digit_reversal,
    hadamard_factors,
    symmetric_bins,
    symmetric_factor,
)
from ksurgeon.patterns.pattern import Pattern

__all__ = ["KTransform", "TransformKind", "count_parameters"]

TransformKind = Literal["dft", "idft", "rdft", "irdft", "dct", "dct_ortho", "hadamard", "circulant"]
_COMPLEX = ("dft", "idft", "rdft", "irdft")
_PLAIN: dict[str, Callable[..., Tensor]] = {
    "dft": torch.fft.fft, "idft": torch.fft.ifft, "rdft": torch.fft.rfft, "irdft": torch.fft.irfft,
}  # fmt: skip


def count_parameters(facts: Mapping[str, Any], structure: Butterfly) -> int:
    """Parameters of the transform that ``facts`` describes, and of the filters that follow it if any do.

    Raises:
        StructureError: radices that do not multiply to the size.
    """
    others = int(facts.get("filters", 0))
    if "transform" not in facts:
        return others
    module = KTransform.of(facts, structure, start="empty")
    return sum(factor.numel() for factor in module.factors) + others


class KTransform(nn.Module):
    """A chain of Kronecker-sparse factors along one dimension that starts as a known transform, exactly.

    The complex factors of a Fourier transform are kept as their real and imaginary parts, shape
    ``(a, d, b, c, 2)``, so that ``to(dtype)``, optimisers and exporters treat them as any other parameter;
    they are applied in real arithmetic. The digit reversal before them is an exact permutation.

    Args:
        kind: "dft", "idft", "rdft" (real input, n // 2 + 1 outputs), "irdft", "dct" (DCT-II), "dct_ortho"
            (its rows of unit length), "hadamard" (Sylvester's order) or "circulant", scaled as ``torch.fft``
            and ``scipy.fft`` do by default.
        n: size of the transform.
        dim: the dimension that is mapped.
        scale: every output is multiplied by it to start with.
        column: first column of a circulant matrix, real.
        others: further dimensions, along which the same Fourier transform is taken as ``torch.fft`` does it,
            with ``norm``: those whose size a model leaves open.
        radices: of the factors; the cheapest if left out.
        symmetric: of "rdft": the factors hold one of each pair of conjugate columns, as an FFT of real
            input does: about 0.7 of the parameters and multiplications with several radices, the first of
            them large, and no fewer with one.
        start: "exact", "random" (keeps the variance) or "empty".
        device, dtype: of the parameters, real.

    Raises:
        StructureError: a size that the transform cannot have, radices that do not multiply to it, or
            ``symmetric`` for another kind.
    """

    def __init__(
        self,
        kind: TransformKind,
        n: int,
        dim: int = -1,
        *,
        scale: float = 1.0,
        column: Sequence[float] | Tensor | None = None,
        others: Sequence[int] = (),
        norm: str = "backward",
        radices: Sequence[int] | None = None,
        symmetric: bool = False,
        start: str = "exact",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if symmetric and kind != "rdft":
            raise StructureError(
                f'symmetric = true is for the Fourier transform of real input ("rdft"), not for "{kind}"'
            )
        self.symmetric = symmetric
        self.kind, self.n, self.dim, self.scale, self.others = kind, n, dim, scale, tuple(others)
        self.norm = norm
        half = n // 2 + 1
        self.in_features = half if kind == "irdft" else n
        self.out_features = half if kind == "rdft" else n
        self.column = None if column is None else tuple(torch.as_tensor(column, dtype=torch.float64).tolist())
        self.radices = transform_radices(n, symmetric) if radices is None else tuple(radices)
        self.site = ""
        self.replaced: tuple[tuple[str, nn.Module], ...] = ()
        order, exact = self._exact()
        self.register_buffer("order", None if order is None else order.to(device), persistent=False)
        bins = symmetric_bins(n, self.radices[0]).to(device) if symmetric else None
        self.register_buffer("bins", bins, persistent=False)
        self.factors = nn.ParameterList(
            nn.Parameter(torch.empty(factor.shape, device=device, dtype=dtype)) for factor in exact
        )
        with torch.no_grad():
            for factor, value in zip(self.factors, exact, strict=True):
                if start == "exact":
                    factor.copy_(value)
                elif start == "random":
                    parts = 2 if self.is_complex else 1
                    factor.normal_(std=1 / sqrt(parts * value.shape[3]))
                elif start != "empty":
                    raise StructureError(
                        f"start of a transform must be exact, random or empty, got {start!r}"
                    )

    @classmethod
    def of(cls, facts: Mapping[str, Any], structure: Butterfly, dim: int = -1, **options: Any) -> Self:
        """The transform that plain data describes: ``transform``, ``n``, and options of the constructor."""
        names = ("scale", "column", "others", "norm")
        given = {name: facts[name] for name in names if name in facts}
        n = int(facts["n"])
        structure.patterns(n, n)
        options = {"radices": structure.radices(n), "symmetric": structure.symmetric, **given, **options}
        return cls(facts["transform"], n, dim, **options)

    @property
    def is_complex(self) -> bool:
        """Whether the factors are complex, their parts along a last dimension."""
        return self.kind in _COMPLEX

    def _exact(self) -> tuple[Tensor | None, list[Tensor]]:
        """Order of the input, and factors in double precision."""
        n, kind, radices = self.n, self.kind, self.radices
        order: Tensor | None = None
        if kind == "hadamard":
            factors = hadamard_factors(n)
        elif kind in ("dct", "dct_ortho"):
            order, factors = dct_factors(n, radices, ortho=kind == "dct_ortho")
        elif kind == "circulant":
            if self.column is None or len(self.column) != n:
                raise StructureError(f"a circulant matrix of size {n} needs its first column, {n} numbers")
            factors = circulant_factors(torch.tensor(self.column, dtype=torch.float64), radices)
        else:
            order = digit_reversal(radices)
            factors = dft_factors(n, radices, inverse=kind in ("idft", "irdft"))
        if self.symmetric:
            factors = [symmetric_factor(factor, radices[0]) for factor in factors]
        elif kind == "rdft":
            stride = n // radices[-1]
            factors[-1] = factors[-1][:, :, : -(-self.out_features // stride)]
        elif kind == "irdft":
            # Re Σ of the upper half twice is Σ of both halves.
            weight = torch.full((n,), 2.0, dtype=torch.float64)
            weight[0], weight[self.in_features :] = 1, 0
            if n % 2 == 0:
                weight[n // 2] = 1
            factors[0] = factors[0] * weight[order].view(n // radices[0], 1, 1, radices[0])
        factors[-1] = factors[-1] * self.scale
        return order, [torch.view_as_real(f) for f in factors] if self.is_complex else factors

    def parts(self, x: Tensor, dim: int, window: Tensor | None = None) -> Tensor:
        """Real and imaginary parts, along a new dimension before ``dim``, of the DFT of real ``x``.

        The caller has put its entries in order: ``x.index_select(dim, self.order)``. They are first
        multiplied by ``window``, in the same order, where one is given.
        """
        dim = dim % x.dim()
        y = self.ordered(self.as_computed(x, dim, window), dim + 1)
        if self.symmetric:
            index = torch.arange(self.out_features, device=y.device)
            mirrored = index % self.radices[0] > self.radices[0] // 2
            signs = torch.stack([torch.ones_like(index), torch.where(mirrored, -1, 1)])
            y = y * signs.to(y.dtype).view(2, -1, *[1] * (y.dim() - dim - 2))
        return y

    def as_computed(self, x: Tensor, dim: int, window: Tensor | None = None) -> Tensor:
        """``parts`` in the order in which they are computed, with some that nobody asked for; where the
        transform is symmetric the conjugates of some."""
        factors = self._real_chain(x, "real", "both", window)
        y = multiply(x, factors, dim, 1, self.n, Pattern.of(factors[-1].shape).out_features, False)
        return y.unflatten(dim, (2, y.shape[dim] // 2))

    def ordered(self, y: Tensor, dim: int) -> Tensor:
        """The frequencies from zero up, of what is in the order in which it was computed."""
        if self.symmetric:
            return y.index_select(dim, self.bins)  # type: ignore[arg-type]
        return y.narrow(dim, 0, self.out_features)

    def _real_chain(
        self, x: Tensor, takes: Literal["real", "both"], gives: Literal["real", "both"], window: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The chain in real arithmetic for ``x``, its inputs multiplied by ``window``."""
        factors = list(self._held())

        def make(sources: Sequence[Tensor]) -> tuple[Tensor, ...]:
            first, *rest = as_real(sources[: len(factors)], takes=takes, gives=gives)
            for along in sources[len(factors) :]:
                a, d, _, c = first.shape
                first = first * along.view(a, d, 1, c)
            return first, *rest

        sources = [*factors, *([] if window is None else [window])]
        if is_eager(x, sources):
            return kept(self, (takes, gives), sources, make)
        if not torch.compiler.is_compiling():
            forget(self)
        return make(sources)

    def forward(self, x: Tensor) -> Tensor:
        """Map dimension ``dim`` of ``x`` from ``in_features`` to ``out_features`` entries."""
        if torch.is_autocast_enabled(x.device.type):  # as torch.fft, in the precision of the parameters
            with torch.autocast(x.device.type, enabled=False):
                return self._apply_to(x)
        return self._apply_to(x)

    def _apply_to(self, x: Tensor) -> Tensor:
        dim = self.dim % x.dim()
        if x.shape[dim] != self.in_features:
            raise ValueError(
                f"expected {self.in_features} entries along dimension {self.dim}, got a tensor of shape "
                f"{tuple(x.shape)}; this transform is learnable, and so of a fixed size"
            )
        if self.kind == "rdft" and x.is_complex():
            raise ValueError(
                f'a transform "rdft" takes real tensors, got {x.dtype}; "dft" takes complex ones'
            )
        dtype = self.factors[0].dtype
        if self.kind in _PLAIN and self.is_untouched(x):
            options = {"n": self.n} if self.kind == "irdft" else {}
            y = _PLAIN[self.kind](x, dim=dim, **options)
            return self._along_others(y if self.scale == 1 else y * self.scale)
        if not self.is_complex:
            if x.is_complex():
                return torch.complex(self(x.real), self(x.imag))
            return self._real(x.to(dtype), dim).to(x.dtype)
        if self.kind == "irdft":
            x = nn.functional.pad(x, [0, 0] * (x.dim() - dim - 1) + [0, self.n - self.in_features])
        gives: Literal["real", "both"] = "real" if self.kind == "irdft" else "both"
        x = self._digits_reversed(x, dim)
        if gives == "both" and not x.is_complex():
            re, im = self.parts(x.to(dtype), dim).unbind(dim)
            y = torch.complex(re.contiguous(), im.contiguous())
        else:
            x = x if x.is_complex() else torch.complex(x, torch.zeros_like(x))
            both = torch.view_as_real(x).movedim(-1, dim + 1).flatten(dim, dim + 1).to(dtype)
            factors = self._real_chain(both, "both", gives, None)
            y = multiply(both, factors, dim, 1, 2 * self.n, Pattern.of(factors[-1].shape).out_features, False)
            if gives == "real":
                return y
            re, im = y.chunk(2, dim)
            y = torch.complex(re.contiguous(), im.contiguous())
        return self._along_others(y)

    def _digits_reversed(self, x: Tensor, dim: int) -> Tensor:
        """``x.index_select(dim, self.order)`` of a Fourier transform, copied block by block."""
        digits = range(dim, dim + len(self.radices))
        before, after = range(dim), range(digits.stop, x.dim() + len(self.radices) - 1)
        x = x.unflatten(dim, self.radices).permute(*before, *reversed(digits), *after)
        return x.flatten(dim, digits.stop - 1)

    def _along_others(self, y: Tensor) -> Tensor:
        if self.others:
            take = torch.fft.ifftn if self.kind == "idft" else torch.fft.fftn
            y = take(y, dim=self.others, norm=self.norm)
        return y

    def _real(self, x: Tensor, dim: int) -> Tensor:
        if self.order is not None:
            x = x.index_select(dim, self.order)  # type: ignore[arg-type]
        return multiply(x, self._held(), dim, 1, self.n, self.n, False)

    def _held(self) -> Sequence[Tensor]:
        factors = factors_of(self.factors, len(self.factors))
        return fetched(self.factors) if factors[0].is_meta else factors

    def is_untouched(self, x: Tensor) -> bool:
        """Whether ``torch.fft`` gives the same for ``x``: eager inference with factors nobody has trained."""
        dtype = self.factors[0].dtype
        if self.kind not in _PLAIN or dtype not in (torch.float32, torch.float64):
            return False
        factors = self._held()
        if not is_eager(x, factors) or x.dtype not in (dtype, dtype.to_complex()):
            return False
        if not x.numel():  # which torch.fft may not take
            return False
        started = _started(self.kind, self.n, self.scale, self.radices, self.symmetric, dtype)
        return all(torch.equal(now, then) for now, then in zip(factors, started, strict=True))

    @torch.no_grad()
    def is_exact(self) -> bool:
        """Whether the factors are still those of the transform."""
        exact = self._exact()[1]
        return all(torch.equal(f, e.to(f)) for f, e in zip(self._held(), exact, strict=True))

    def extra_repr(self) -> str:
        radices = "·".join(str(factor.shape[2]) for factor in self.factors)
        symmetric = ", symmetric" if self.symmetric else ""
        return f"{self.kind}, n={self.n}, dim={self.dim}, radices {radices}{symmetric}"


@lru_cache(maxsize=32)
def _started(
    kind: TransformKind, n: int, scale: float, radices: tuple[int, ...], symmetric: bool, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    with torch.inference_mode(False), torch.device("cpu"):
        made = KTransform(kind, n, scale=scale, radices=radices, symmetric=symmetric, dtype=dtype)
    return tuple(factor.detach() for factor in made.factors)
