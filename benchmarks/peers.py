"""Others' ways to multiply by the same matrix, each checked against ours before it is timed."""

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.turns import Call
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.patterns.merge import merge_counts

__all__ = ["butterfly_start", "monarch", "peers", "structured"]


@lru_cache
def _package(name: str) -> Any:
    """A package of the extra ``bench``, None where it is not installed; both greet with many words."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


def butterfly_start(layer: KLinear) -> list[Tensor] | None:
    """Make the layer's matrix one of radix-2 factors and return these; None unless its sides are 2^k.

    A product of radix-2 factors is what torch-structured can hold.
    """
    n = layer.in_features
    if n != layer.out_features or n & (n - 1):
        return None
    with torch.no_grad():
        small = [factor.detach() for factor in KMatrix(n, radix=2).factors]
        counts = [pattern.b.bit_length() - 1 for pattern in layer.matrix.patterns]
        for factor, merged in zip(layer.matrix.factors, merge_counts(small, counts), strict=True):
            factor.copy_(merged)
    return small


def monarch(matrix: KMatrix) -> Callable[[Tensor], Tensor]:
    """The same matrix with wide blocks and batched matrix products, as Monarch layers compute it."""
    with torch.no_grad():
        merged = matrix.merged(64)
        weights = [factor.mT.flatten(0, 1).contiguous() for factor in merged]
    shapes = [tuple(factor.shape) for factor in merged]

    def apply(x: Tensor) -> Tensor:
        rows = len(x)
        for weight, (a, d, b, c) in zip(weights, shapes, strict=True):
            blocks = x.view(rows, a, c, d).permute(1, 3, 0, 2).reshape(a * d, rows, c)
            x = torch.bmm(blocks, weight).view(a, d, rows, b).permute(2, 0, 3, 1).reshape(rows, a * b * d)
        return x

    return apply


def _lazylinop(factors: list[Tensor]) -> Any:
    """An operator that multiplies columns; None without the package."""
    package = _package("lazylinop.butterfly")
    if package is None:
        return None
    return package.ksm([factor.detach().permute(0, 2, 3, 1).contiguous() for factor in reversed(factors)])


def structured(layer: KLinear) -> tuple[str, Callable[[Tensor], Tensor]] | None:
    """The layer of torch-structured for the same matrix, changed to one it can hold, or of the same sizes."""
    small = butterfly_start(layer)
    package = _package("torch_structured")
    if package is None:
        return None
    sizes = layer.in_features, layer.out_features
    made = package.Butterfly(*sizes, bias=False, increasing_stride=False, nblocks=2)
    made = made.to(layer.matrix.factors[0])
    if small is None:
        return "torch-structured, padded", made
    half = len(small) // 2
    with torch.no_grad():
        for position, factor in enumerate(small):
            made.twiddle[0, position // half, position % half] = factor.reshape(-1, 2, 2)
    return "torch-structured", made


def peers(layer: KLinear, x: Tensor) -> dict[str, Call]:
    """Candidates by name, as far as their packages (extra ``bench``) are there.

    All compute the layer's map without its bias, on the same matrix, except "torch-structured, padded": that
    package has no matrix of these sizes, and it is what it puts there.
    """
    other = structured(layer)  # first: it changes the matrix
    found: dict[str, Any] = {"batched Monarch": monarch(layer.matrix)}
    if other is not None:
        found[other[0]] = other[1]
    few, columns = x[:8], x.T.contiguous()
    expected = layer.matrix(few)
    near = {"rtol": 1e-4, "atol": 1e-4 * float(expected.abs().max())}
    calls: dict[str, Call] = {}
    for name, apply in found.items():
        if "padded" not in name:
            torch.testing.assert_close(apply(few), expected, **near)
        calls[name] = lambda apply=apply: apply(x)  # type: ignore[misc]
    factors = [factor.detach() for factor in layer.matrix.factors]
    for name, chain in {"ksm": factors, "ksm, merged": layer.matrix.merged(32)}.items():
        operator = _lazylinop(chain)
        if operator is not None:
            torch.testing.assert_close((operator @ few.T.contiguous()).T, expected, **near)
            calls[f"lazylinop {name}"] = lambda operator=operator: operator @ columns  # type: ignore[misc]
    return calls
