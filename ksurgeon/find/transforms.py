"""Recognise Fourier, cosine, Hadamard and circulant transforms in a traced forward."""

import operator
from collections.abc import Iterator
from math import sqrt
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ksurgeon.find.match import Match
from ksurgeon.find.movement import Region, tensor_inputs, tensor_users
from ksurgeon.find.probe import run_region
from ksurgeon.find.sizes import is_fixed
from ksurgeon.find.tracer import Trace, attribute_of
from ksurgeon.kmatrix.known import known_matrix

__all__ = ["find_transforms"]

_ONE = {torch.fft.fft: "dft", torch.fft.ifft: "idft", torch.fft.rfft: "rdft", torch.fft.irfft: "irdft"}
_MANY = {torch.fft.fftn: "dft", torch.fft.fft2: "dft", torch.fft.ifftn: "idft", torch.fft.ifft2: "idft"}
_UNKNOWN = (
    torch.fft.rfft2,
    torch.fft.rfftn,
    torch.fft.irfft2,
    torch.fft.irfftn,
    torch.fft.hfft,
    torch.fft.ihfft,
)
_PRODUCTS = (torch.matmul, operator.matmul, torch.mm, torch.bmm, F.linear, "matmul", "mm")
_TIMES = (torch.mul, operator.mul, "mul")
_VIEWS = ("T", "mT", "real", "imag", "t", "transpose", "contiguous", "to", "float")
_SMALLEST = 4  # below, one matrix is half a dozen transforms at once


def find_transforms(module: nn.Module, trace: Trace, movers: set[str]) -> Iterator[Match]:
    """Transforms of a size that the model fixes, in the order they run.

    Those of a size that comes from the input are given with a reason why they cannot be replaced.
    """
    convolutions = {node: _convolution(module, node) for node in trace.graph.nodes}
    taken = {inside for match in convolutions.values() if match for inside in match.region.nodes}
    for node in trace.graph.nodes:
        match = convolutions[node]
        if match is None and node not in taken:
            match = _fourier(module, node) or _product(module, node)
        if match is not None:
            yield match


def _value(node: Any) -> Any:
    return node.meta.get("value") if isinstance(node, fx.Node) else node


def _dtype(value: Tensor) -> str:
    """The real dtype in which the value is kept."""
    dtype = value.dtype.to_real() if value.is_complex() else value.dtype
    return str(dtype).removeprefix("torch.")


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of a function of torch.fft by name; sizes that are nodes as they were in the example run."""
    several = node.target in _MANY or node.target in _UNKNOWN
    names = ("input", "s" if several else "n", "dim", "norm")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return {
        name: fx.node.map_arg(value, _value) if name != "input" else value for name, value in given.items()
    }


def _fourier(module: nn.Module, node: fx.Node) -> Match | None:
    if node.op != "call_function" or node.target not in {*_ONE, *_MANY, *_UNKNOWN}:
        return None
    given = _arguments(node)
    source, value = given.get("input"), _value(given.get("input"))
    result = _value(node)
    if not isinstance(source, fx.Node) or not isinstance(value, Tensor) or "out" in given:
        return None
    two = node.target in (torch.fft.fft2, torch.fft.ifft2)
    dims = given.get("dim", (-2, -1) if two else None if node.target in _MANY else -1)
    if dims is None:
        dims = tuple(range(value.dim()))
    dims = tuple(d % value.dim() for d in (dims if isinstance(dims, (tuple, list)) else (dims,)))
    kind = {**_ONE, **_MANY}.get(node.target, "")  # type: ignore[call-overload]
    norm = given.get("norm") or "backward"
    fixed = [d for d in dims if is_fixed(module, source, node, d)]
    region = Region(source, [node])
    last = fixed[-1] if fixed else dims[-1]
    n = result.shape[last] if kind == "irdft" else value.shape[last]
    options: dict[str, Any] = {
        "kind": "transform", "region": region, "dim": last,
        "in_features": value.shape[last], "out_features": result.shape[last],
    }  # fmt: skip
    if not kind:
        return Match(**options, reason=f"{node.target.__name__} has no K-matrix here")  # type: ignore[union-attr]
    if any(value.shape[d] != result.shape[d] for d in dims) and kind in ("dft", "idft"):
        return Match(**options, reason="it pads or crops what it takes")
    if kind == "rdft" and result.shape[last] != value.shape[last] // 2 + 1:
        return Match(**options, reason="it pads or crops what it takes")
    if kind == "irdft" and n // 2 + 1 != value.shape[last]:
        return Match(**options, reason="it pads or crops what it takes")
    if not fixed:
        return Match(**options, reason=f"its size along dimension {last} comes from the input")
    if n < _SMALLEST:
        return Match(**options, reason=f"it has size {n}: there is nothing to structure")
    relative = {"backward": 1.0, "ortho": 1 / sqrt(n), "forward": 1 / n}[norm]
    if kind in ("idft", "irdft"):
        relative = {"backward": 1.0, "ortho": sqrt(n), "forward": float(n)}[norm]
    others = [d for d in dims if d != last]
    facts = {
        "transform": kind,
        "n": n,
        "scale": relative,
        "others": others,
        "norm": norm,
        "dtype": _dtype(value),
    }
    return Match(**options, facts=facts)


def _constant(module: nn.Module, node: Any) -> Tensor | None:
    """The buffer that a node reads, or a view of it; parameters are no constants."""
    if not isinstance(node, fx.Node):
        return None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name == "getattr":
        name = str(node.args[1])
    if node.op in ("call_function", "call_method") and name in _VIEWS and len(node.all_input_nodes) == 1:
        inner = _constant(module, node.args[0])
        if inner is None:
            return None
        if name in ("T", "mT", "real", "imag"):
            return getattr(inner, name)  # type: ignore[no-any-return]
        return getattr(inner, name)(*node.args[1:], **node.kwargs)  # type: ignore[no-any-return]
    if node.op != "get_attr":
        return None
    found = attribute_of(module, str(node.target))
    return found if type(found) is Tensor and not found.requires_grad else None


def _product(module: nn.Module, node: fx.Node) -> Match | None:
    """Multiplication with a constant matrix that is a known transform."""
    if node.target not in _PRODUCTS or len(node.args) < 2 or node.kwargs or node.args[2:]:
        return None
    left, right = node.args[:2]
    matrix, source = _constant(module, right), left
    along = -1
    if matrix is not None:
        matrix = matrix if node.target is F.linear else matrix.mT
    else:
        matrix, source, along = _constant(module, left), right, -2
    value = _value(source)
    if matrix is None or matrix.dim() != 2 or not isinstance(value, Tensor) or value.dim() < -along:
        return None
    if value.dtype != matrix.dtype and not matrix.is_complex():
        return None
    assert isinstance(source, fx.Node)
    known = known_matrix(matrix)
    if known is None:
        return None
    if value.is_complex() and known["transform"] == "rdft":
        return None
    return Match(
        kind="transform",
        region=Region(source, [node]),
        in_features=matrix.shape[1],
        out_features=matrix.shape[0],
        dim=along % value.dim(),
        facts=known | {"dtype": _dtype(value)},
    )


def _convolution(module: nn.Module, node: fx.Node) -> Match | None:
    """Circular convolution with constants: a DFT, a product with them, and the inverse DFT."""
    inverse = node
    if node.op == "call_function" and node.target is getattr and node.args[1] == "real":
        inverse = node.args[0]  # type: ignore[assignment]
    if not isinstance(inverse, fx.Node) or inverse.target not in (torch.fft.irfft, torch.fft.ifft):
        return None
    if (inverse is node) != (inverse.target is torch.fft.irfft):
        return None
    times = _arguments(inverse).get("input")
    if not isinstance(times, fx.Node) or times.target not in _TIMES:
        return None
    factors = [
        n for n in times.args if isinstance(n, fx.Node) and n.target in (torch.fft.rfft, torch.fft.fft)
    ]
    if len(factors) != 1 or len(tensor_inputs(times)) != 1 or len(times.all_input_nodes) != 2:
        return None
    (forward,) = factors
    source = _arguments(forward).get("input")
    value, result = _value(source), _value(node)
    other = next(n for n in times.all_input_nodes if n is not forward)
    if _constant(module, other) is None or not isinstance(source, fx.Node) or value.is_complex():
        return None
    nodes = list(dict.fromkeys([forward, times, inverse, node]))
    if any(len(tensor_users(n)) != 1 for n in nodes[:-1]) or value.shape != result.shape:
        return None
    dim = _arguments(forward).get("dim", -1) % value.dim()
    n = value.shape[dim]
    if n < _SMALLEST or not is_fixed(module, source, node, dim, inside=nodes):
        return None
    region = Region(source, nodes)
    column = _column(module, region, dim)
    if column is None:
        return None
    facts = {"transform": "circulant", "n": n, "scale": 1.0, "column": column, "dtype": _dtype(value)}
    return Match(kind="transform", region=region, in_features=n, out_features=n, dim=dim, facts=facts)


def _column(module: nn.Module, region: Region, dim: int) -> list[float] | None:
    """First column of the circulant matrix that a region is for every vector, proved on a basis."""
    value = _value(region.source)
    n = value.shape[dim]
    shape = [1 if d not in (0, dim) else n for d in range(value.dim())]
    if dim == 0 and value.dim() > 1:
        return None
    basis = torch.eye(n, dtype=value.dtype).view(shape) if value.dim() > 1 else None
    if basis is None:
        return None
    sizes = [n if d == 0 else s for d, s in enumerate(value.shape)]
    try:
        columns = run_region(module, region, basis.expand(sizes).contiguous()).movedim(dim, -1)
    except Exception:
        return None
    flat = columns.reshape(n, -1, n)
    first = flat[0, 0]
    index = (torch.arange(n)[None, :] - torch.arange(n)[:, None]) % n
    expected = first[index][:, None]
    if not torch.allclose(flat, expected.expand_as(flat), atol=1e-5 * float(first.abs().max() or 1)):
        return None
    if int((first.abs() > 1e-6 * float(first.abs().max() or 1)).sum()) < 2:
        return None
    return [float(v) for v in first]
