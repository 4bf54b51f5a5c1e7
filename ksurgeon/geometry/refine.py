"""An arrangement improved until it explains itself: its distances are those that its places let expect."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from ksurgeon.geometry.embedding import Array, Index, grid

__all__ = ["SAME", "Refiner", "assigned", "move_costs"]


def assigned(cost: Array) -> Index:
    """The column of each row in the assignment of least total cost."""
    from scipy.optimize import linear_sum_assignment

    columns: Index = linear_sum_assignment(cost)[1].astype(np.int64)
    return columns


SAME = 1e-9  # relative difference of losses that are the same but for rounding
_ROUNDS = 12  # at most, for each reach
_NEAR = 2.0  # the reach, in places, of the loss
_LIKELY = 16  # changes of a kind that are tried
_TINY = 1e-12
_FLOOR = 0.05  # of the mean variance, so that no pair counts for everything


def move_costs(actual: Array, expected: Array, weights: Array) -> Array:
    """What the entry at place a costs at place p: Σ_q w[p, q] (actual[a, q] − expected[p, q])².

    Where q is a itself, the entry of p is taken to be there. So ``c[a, p] + c[p, a] − c[a, a] − c[p, p]`` is
    exactly the change of ½ Σ w (actual − expected)² when the two change places.

    Args:
        actual, expected, weights: symmetric ``(n, n)``; the diagonals of ``actual`` and ``weights`` are zero.
    """
    costs = actual**2 @ weights - 2 * actual @ (weights * expected) + (weights * expected**2).sum(1)
    return np.array(costs + weights * (actual**2 - 2 * actual * expected))


class Refiner:
    """Finds places of entries from the distances between all of them.

    The distance of two places is expected to be that of places moved a little: the mean over such pairs in
    the present arrangement. Every entry is then moved to where its distances from all others are expected
    the most, by one linear assignment for all, and so on.

    Args:
        distances: symmetric, ``(n, n)``, between entries, of any scale; zero on the diagonal.
        shape: of the grid.
    """

    def __init__(self, distances: Array, shape: Sequence[int]) -> None:
        self.distances, self.shape = distances, tuple(shape)
        places = grid(shape)
        self.apart = ((places[:, None] - places) ** 2).sum(-1)
        self.kernels = [_along_diagonals(side) for side in shape]
        self.weight_sums = self._moved_sums(np.ones_like(distances))

    def refine(self, order: Index, reach: float) -> Index:
        """Move entries until none moves or the loss grows; ``order[place]`` is an entry.

        Args:
            reach: standard deviation, in places, of the weights by which pairs count.
        """
        best, least = order, self.loss(order)
        for _ in range(_ROUNDS):
            order = self._moved(order, reach)
            loss = self.loss(order)
            if loss >= least:
                break
            best, least = order, loss
        return best

    def loss(self, order: Index) -> float:
        """Squared error of the distances near each place, as a share of their variance."""
        near = self._near(_NEAR)
        actual = self.distances[order][:, order]
        error = (near * (actual - self._expected(actual)) ** 2).sum()
        return float(error / (near.sum() * self.distances.var()))

    def mend(self, order: Index) -> Index:
        """Let two entries change places, or turn a part of a line round, as long as that lessens the loss."""
        least, better = self.loss(order), True
        while better:
            better = False
            trials = self._swapped(order)
            if len(self.shape) == 1:
                trials += self._reversed(order)
            for trial in trials:
                loss = self.loss(trial)
                if loss < (1 - SAME) * least:
                    order, least, better = trial, loss, True
                    break
        return order

    def _swapped(self, order: Index) -> list[Index]:
        """Orders in which two entries have changed places, those that promise the most."""
        first, second = np.triu_indices(len(order), 1)
        costs = self._costs(order, _NEAR)
        stay = costs.diagonal()
        changes = (costs + costs.T - stay[:, None] - stay)[first, second]
        trials = []
        for pair in np.argsort(changes)[:_LIKELY]:
            trial = order.copy()
            trial[[first[pair], second[pair]]] = order[[second[pair], first[pair]]]
            trials.append(trial)
        return trials

    def _reversed(self, order: Index) -> list[Index]:
        """Orders of a line of which a part is turned round, those whose neighbours are nearest (2-opt)."""
        line = np.pad(self.distances[order][:, order], 1)  # before the first and after the last is nothing
        first, last = np.triu_indices(len(order), 1)
        changes = line[first, last + 1] + line[first + 1, last + 2]
        changes -= line[first, first + 1] + line[last + 1, last + 2]
        trials = []
        for part in np.argsort(changes)[:_LIKELY]:
            trial = order.copy()
            turned = slice(first[part], last[part] + 1)
            trial[turned] = order[turned][::-1]
            trials.append(trial)
        return trials

    def _moved(self, order: Index, reach: float) -> Index:
        moved = np.empty_like(order)
        moved[assigned(self._costs(order, reach))] = order
        return moved

    def _costs(self, order: Index, reach: float) -> Array:
        actual = self.distances[order][:, order]
        expected = self._expected(actual)
        variance = self._expected((actual - expected) ** 2)
        near = self._near(reach)
        weights = near / (variance + _FLOOR * np.average(variance, weights=near) + _TINY)
        return move_costs(actual, expected, weights)

    def _near(self, reach: float) -> Array:
        near = np.exp(self.apart / (-2 * reach**2))
        np.fill_diagonal(near, 0)
        return near

    def _expected(self, actual: Array) -> Array:
        return self._moved_sums(actual) / self.weight_sums

    def _moved_sums(self, pairs: Array) -> Array:
        """Of every pair of places, the weighted sum over the pairs that are it, moved along the grid."""
        dimensions = len(self.shape)
        first_second = [axis for side in range(dimensions) for axis in (side, dimensions + side)]
        sums: Any = pairs.reshape(self.shape * 2).transpose(first_second)
        for axis, kernel in enumerate(self.kernels):
            sums = np.moveaxis(sums, (2 * axis, 2 * axis + 1), (0, 1))
            shape = sums.shape
            sums = (kernel @ sums.reshape(kernel.shape[0], -1)).reshape(shape)
            sums = np.moveaxis(sums, (0, 1), (2 * axis, 2 * axis + 1))
        n = prod(self.shape)
        return np.array(sums.transpose(np.argsort(first_second)).reshape(n, n))


def _along_diagonals(side: int) -> Any:
    """Weights of the pairs (i + t, j + t) for each pair (i, j) of places along an axis, sparse."""
    from scipy.sparse import csr_array

    width = min(max(side / 8, 1.5), 8.0)
    farthest = int(3 * width)
    i, j, t = (part.ravel() for part in np.indices((side, side, 2 * farthest + 1)))
    t = t - farthest
    inside = (np.minimum(i, j) + t >= 0) & (np.maximum(i, j) + t < side)
    i, j, t = i[inside], j[inside], t[inside]
    weights = np.exp(t**2 / (-2 * width**2))
    return csr_array((weights, (i * side + j, (i + t) * side + j + t)), shape=(side**2, side**2))
