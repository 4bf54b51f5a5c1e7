"""Clos networks: the factors of ``BB*`` that are a given permutation."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.initialise import identity_

__all__ = ["Index", "checked", "route_"]

Index = NDArray[np.int64]


@torch.no_grad()
def route_(factors: Sequence[Tensor], permutation: Index) -> None:
    """Write the factors of a square BB* that maps ``x`` to ``x[permutation]``; every entry becomes 0 or 1.

    BB* of radices r1, …, rk is a Clos network: rk × rk switches, rk networks of size n / rk, rk × rk
    switches (Slepian 1952, Duguid 1959; radix 2 throughout is the Beneš network). Routing it is an edge
    colouring.

    Args:
        factors: of shape ``(a, d, b, c)`` each, in the order applied.
        permutation: as long as the chain is wide; see ``checked``.
    """
    stages = len(factors) // 2
    identity_(factors[stages : stages + 1])
    source = permutation[None]  # one row for each network of this depth
    for depth in range(stages - 1):
        first, last = factors[depth], factors[2 * stages - 1 - depth]
        networks, m, radix, _ = first.shape
        network, target = np.arange(networks)[:, None], np.arange(m * radix)[None]
        colour = _edge_colouring(
            (network * m + source % m).ravel(), (network * m + target % m).ravel(), radix
        ).reshape(source.shape)
        _write(first, network, source % m, colour, source // m)
        _write(last, network, target % m, target // m, colour)
        inner = np.empty((networks, radix, m), dtype=np.int64)
        inner[network, colour, target % m] = source % m
        source = inner.reshape(networks * radix, m)
    _write(factors[stages - 1], np.arange(len(source))[:, None], 0, np.arange(source.shape[1])[None], source)


def checked(permutation: Tensor | Sequence[int], n: int) -> Index:
    """A permutation of 0 … n−1 as an array of int64.

    Raises:
        StructureError: it is none.
    """
    values = torch.as_tensor(permutation).detach().cpu()
    if values.dim() != 1 or values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise StructureError(
            f"a permutation is a vector of integers, got shape {tuple(values.shape)} of {values.dtype}"
        )
    index: Index = values.numpy().astype(np.int64)
    if len(index) != n:
        raise StructureError(f"the matrix has {n} entries, the permutation {len(index)}")
    outside = index[(index < 0) | (index >= n)]
    if len(outside):
        raise StructureError(f"no permutation of 0 … {n - 1}: it holds {outside[0]}")
    counts = np.bincount(index, minlength=n)
    if (counts != 1).any():
        raise StructureError(
            f"no permutation of 0 … {n - 1}: {counts.argmin()} is missing, "
            f"{counts.argmax()} stands there {counts.max()} times"
        )
    return index


def _write(factor: Tensor, *position: Index | int) -> None:
    """Make ``factor`` one at the positions given, zero elsewhere."""
    broadcast = np.broadcast_arrays(*position)
    values = torch.zeros_like(factor)
    values[tuple(torch.from_numpy(p.copy()).to(factor.device) for p in broadcast)] = 1
    factor.copy_(values)


def _edge_colouring(left: Index, right: Index, degree: int) -> Index:
    """Colour the edges of a regular bipartite multigraph with ``degree`` colours, no two alike at a vertex.

    Even degree: split into two halves of half the degree. Odd: take out a perfect matching first. All
    the graphs of equal degree that come up are handled as one, so that everything is a numpy operation.
    """
    colour = np.zeros(len(left), dtype=np.int64)
    edges = np.arange(len(left))
    vertices = int(left.max()) + 1
    part, parts, free = np.zeros_like(edges), 1, 0
    while degree > 1:
        u, v = part * vertices + left[edges], part * vertices + right[edges]
        if degree % 2:
            matched = _perfect_matching(u, v, degree)
            colour[edges[matched]] = free + part[matched]
            edges, part = edges[~matched], part[~matched]
            free, degree = free + parts, degree - 1
        else:
            part = 2 * part + _halve(u, v)
            parts, degree = 2 * parts, degree // 2
    colour[edges] = free + part
    return colour


def _halve(u: Index, v: Index) -> NDArray[np.bool_]:
    """Half of the edges of a bipartite multigraph of even degrees: half of those at every vertex.

    Edges are paired at every vertex. Going from edge to edge by the pairs of the left and of the right
    vertices in turn, every other edge belongs to the same half; each walk is labelled by its smallest
    edge, found by pointer doubling.
    """
    at_u, at_v = _partners(u), _partners(v)
    step = at_u[at_v]
    label = np.arange(len(u))
    for _ in range(max(len(u) - 1, 1).bit_length()):
        label = np.minimum(label, label[step])
        step = step[step]
    return label < label[at_v]


def _partners(vertex: Index) -> Index:
    order = np.argsort(vertex, kind="stable")
    partner = np.empty_like(order)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    return partner


def _perfect_matching(u: Index, v: Index, degree: int) -> NDArray[np.bool_]:
    """Edges of a perfect matching of a regular bipartite multigraph (Alon, Inf. Proc. Letters 2003).

    The edges, each ``2**t // degree`` times, and a matching of our own for the remainder make a graph of
    degree 2**t. Halved t times, keeping the half with fewer edges of our own, none of those is left.
    """
    edges = len(u)
    vertices = edges // degree
    t = (edges - 1).bit_length()
    own = np.arange(vertices)
    u, v = np.concatenate([u, own]), np.concatenate([v, own])
    weight = np.full(len(u), 2**t // degree)
    weight[edges:] = 2**t % degree
    for _ in range(t):
        odd = np.flatnonzero(weight % 2)
        weight //= 2
        if len(odd):
            half = _halve(u[odd], v[odd])
            more_own = half[odd >= edges].sum() * 2 > (odd >= edges).sum()
            weight[odd[half != more_own]] += 1
    return weight[:edges] > 0
