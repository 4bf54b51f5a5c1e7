"""A first arrangement: neighbours from partial correlations, and their graph laid out on a grid."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Index", "embedded", "grid", "neighbours"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_TINY = 1e-12
_DETOUR = 3.0  # length of an edge that belongs to no square of the grid


def grid(shape: Sequence[int]) -> Array:
    """The positions of a grid, ``(n, dimensions)``, row by row."""
    return np.indices(tuple(shape)).reshape(len(shape), -1).T.astype(np.float64)


def neighbours(correlations: Array, count: int, ridge: float) -> NDArray[np.bool_]:
    """Adjacency of the entries: each to the ``count`` entries of the highest partial correlation with it.

    A partial correlation is what is left between two entries when all others are known. In a Markov random
    field it vanishes unless they are neighbours, so that it tells these much better than a correlation does.
    The maximum spanning tree keeps the graph in one piece.
    """
    from scipy.sparse.csgraph import minimum_spanning_tree

    n = len(correlations)
    precision = np.linalg.inv(correlations + ridge * np.eye(n))
    scale = np.sqrt(precision.diagonal())
    partial = -precision / scale[:, None] / scale
    np.fill_diagonal(partial, -np.inf)
    nearest = np.argsort(-partial, axis=1)[:, :count]
    adjacent = np.zeros((n, n), dtype=bool)
    adjacent[np.arange(n)[:, None], nearest] = True
    tree = minimum_spanning_tree(np.where(np.eye(n, dtype=bool), 0, 2 - partial)).toarray() > 0
    adjacent |= tree
    return adjacent | adjacent.T


def embedded(adjacent: NDArray[np.bool_], shape: Sequence[int]) -> Array:
    """Positions ``(n, dimensions)`` of the entries, near those of the grid, by the distances along the graph.

    Squares of the graph tell which edges are sound, and give diagonals, which bring distances along the graph
    near straight ones.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import dijkstra

    a = adjacent.astype(np.float64)
    degree = a.sum(1)
    squares = (a @ a @ a) - (degree[:, None] + degree - 1)  # walks of three steps that do not turn back
    sound = adjacent & (squares > 0)
    s = sound.astype(np.float64)
    diagonal = (s @ s >= 2) & ~np.eye(len(a), dtype=bool)
    lengths = np.where(sound, 1.0, np.where(diagonal, np.sqrt(2), np.where(adjacent, _DETOUR, 0.0)))
    distances = dijkstra(csr_array(lengths), directed=False)
    return _turned(_scaled(distances, len(shape)), sound, shape)


def _scaled(distances: Array, dimensions: int) -> Array:
    """Classical multidimensional scaling (Torgerson 1952), the longest axis first."""
    squared = distances**2
    gram = -0.5 * (squared - squared.mean(0) - squared.mean(1)[:, None] + squared.mean())
    values, vectors = np.linalg.eigh(gram)
    return np.array(vectors[:, : -dimensions - 1 : -1] * np.sqrt(values[: -dimensions - 1 : -1].clip(0)))


def _turned(positions: Array, sound: NDArray[np.bool_], shape: Sequence[int]) -> Array:
    """Positions turned so that edges run along the axes, and stretched to the grid's size."""
    places = grid(shape)
    unit = positions / positions.std(0).clip(_TINY)
    if len(shape) == 2:
        first, second = np.nonzero(sound)
        edge = unit[first] - unit[second]
        direction = edge[:, 0] + 1j * edge[:, 1]
        angle = np.angle((direction**4 / np.abs(direction).clip(_TINY) ** 4).sum()) / 4
        cos, sin = np.cos(angle), np.sin(angle)
        unit = unit @ np.array([[cos, -sin], [sin, cos]])
    turned = np.empty_like(unit)
    turned[:, np.argsort([-side for side in shape], kind="stable")] = unit
    return np.array(turned / turned.std(0).clip(_TINY) * places.std(0) + places.mean(0))
