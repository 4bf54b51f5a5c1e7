"""The permutation that puts neighbours beside each other, found from unlabelled data."""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from operator import index
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ksurgeon.errors import DataError, StructureError
from ksurgeon.geometry.embedding import Array, Index, embedded, grid, neighbours
from ksurgeon.geometry.refine import SAME, Refiner, assigned
from ksurgeon.kmatrix.clos import checked

__all__ = ["arrangement_from_moments", "find_arrangement", "neighbour_share"]

Progress = Callable[[int, int, str], None]

_FEWEST = 100  # examples
_CHUNK = 4096
_RIDGES = (0.1, 1.0, 0.01, 10.0)
_STEPS = 1 + len(_RIDGES)
_ROUNDING = 1e-10  # of a mean square, which is no variance
_CLOSEST = 1e-6  # of 1 − correlation, whose logarithm is taken


@torch.no_grad()
def find_arrangement(
    data: Tensor | NDArray[Any], shape: Sequence[int] | int, *, progress: Progress | None = None
) -> Tensor:
    """The permutation that arranges shuffled entries on a grid, as far as data tell: neighbours are alike.

    Correlations between entries → neighbours by partial correlation → distances along their graph →
    multidimensional scaling → assignment to the grid → the arrangement is improved until it explains the
    correlations itself. This is tried with up to four regularisations of the partial correlations, until two
    trials agree, and the one that explains the correlations best is taken. No labels, no gradients, nothing
    random: the same data give the same permutation.

    An arrangement is known up to the symmetries of the grid: it may come out mirrored, and a square one
    turned.

    Args:
        data: ``(examples, n)``, or ``(examples, channels, n)`` where all channels were shuffled alike, as in
            colour images; a tensor of any real dtype, on any device, or an array of NumPy.
        shape: of the grid, such as ``(32, 32)``, or 64 for a line; its product is n.
        progress: called with the number of steps done, of all, and the next one's name.

    Returns:
        ``(n,)``, int64, on the CPU: ``data[..., permutation].unflatten(-1, shape)`` is arranged, and
        ``KMatrix.from_permutation(permutation)`` does the same.

    Raises:
        DataError: fewer than 100 examples, NaN or infinite values, or entries that are constant.
        StructureError: data of another type, or a shape that does not go with them, is neither a line nor a
            plane, or has a side below 3.

    Example:
        >>> images = images.flatten(1)[:, torch.randperm(1024)]  # (20000, 1024), shuffled
        >>> permutation = ksurgeon.find_arrangement(images, (32, 32))
        >>> layer = ksurgeon.KMatrix.from_permutation(permutation)  # exactly this, and learnable
    """
    sides = _sides(shape)
    data = _prepared(data, sides)
    told = progress or (lambda done, total, name: None)
    told(0, _STEPS, "correlations")
    return _arranged(_correlations(data if data.dim() == 3 else data[:, None]), sides, told)


def arrangement_from_moments(moment: Tensor, mean: Tensor, count: int, shape: Sequence[int] | int) -> Tensor:
    """As ``find_arrangement``, from what is known of data that are gone.

    Args:
        moment: ``E[x xᵀ]``, ``(n, n)``, float64.
        mean: ``E[x]``, ``(n,)``, float64.
        count: examples that they are of.
        shape: of the grid.

    Raises:
        DataError: fewer than 100 examples, or entries that are constant.
        StructureError: as ``find_arrangement``.
    """
    sides = _sides(shape)
    _check_shape(sides, len(mean))
    _check_count(count)
    moment, mean = moment.cpu(), mean.cpu()
    covariance = moment - mean[:, None] * mean
    variance = covariance.diagonal()
    _check_varied(variance <= _ROUNDING * moment.diagonal())
    scale = variance.sqrt()
    return _arranged((covariance / scale[:, None] / scale).numpy(), sides, lambda done, total, name: None)


def _arranged(correlations: Array, sides: tuple[int, ...], told: Progress) -> Tensor:
    distances = np.log((1 - correlations).clip(_CLOSEST))
    np.fill_diagonal(distances, 0)
    refiner = Refiner(distances, sides)
    trials: list[tuple[float, Index]] = []
    for number, ridge in enumerate(_RIDGES):
        told(1 + number, _STEPS, f"neighbours by partial correlations with ridge {ridge}")
        positions = embedded(neighbours(correlations, 2 * len(sides), ridge), sides)
        order = np.argsort(assigned(((positions[:, None] - grid(sides)) ** 2).sum(-1)))
        for reach in (max(sides) / 4, max(sides) / 8, 2.0):
            order = refiner.refine(order, reach)
        trials.append((refiner.loss(order), order))
        least, second = sorted(loss for loss, _ in [(np.inf, order), *trials])[:2]
        if second - least <= SAME * least:
            break
    best = refiner.mend(min(trials, key=lambda trial: trial[0])[1])
    told(_STEPS, _STEPS, "")
    return torch.from_numpy(best)


def neighbour_share(
    permutation: Tensor | Sequence[int], truth: Tensor | Sequence[int], shape: Sequence[int]
) -> float:
    """The share of neighbours on the grid that are neighbours again after an arrangement.

    It is the same for arrangements that differ by a symmetry of the grid.

    Args:
        permutation: as ``find_arrangement`` returns it.
        truth: the permutation that shuffled the data, ``shuffled = data[..., truth]``.
        shape: of the grid.

    Raises:
        StructureError: either is no permutation of the grid's places.
    """
    n = prod(shape)
    places = grid(shape)[checked(truth, n)[checked(permutation, n)]].reshape(*shape, len(shape))
    apart = [np.abs(np.diff(places, axis=axis)).sum(-1).ravel() for axis in range(len(shape))]
    return float((np.concatenate(apart) == 1).mean())


def _sides(shape: Sequence[int] | int) -> tuple[int, ...]:
    try:
        return tuple(index(side) for side in (shape if isinstance(shape, Iterable) else [shape]))
    except TypeError as error:
        raise StructureError(
            f"a grid's shape is one or two integers, such as (32, 32); got {shape!r}"
        ) from error


def _prepared(data: Tensor | NDArray[Any], shape: tuple[int, ...]) -> Tensor:
    """The data as a tensor, in a scale whose squares float64 holds."""
    if isinstance(data, np.ndarray) and data.dtype.kind in "biuf" and data.dtype.itemsize <= 8:
        data = torch.as_tensor(np.ascontiguousarray(data, data.dtype.newbyteorder("=")))
    if not isinstance(data, Tensor):
        kind = f"an array of {data.dtype}" if isinstance(data, np.ndarray) else type(data).__name__
        raise StructureError(f"data are a tensor or an array of NumPy with numbers; got {kind}")
    if data.dim() not in (2, 3) or data.is_complex():
        raise StructureError(
            f"data are real, of shape (examples, entries) or (examples, channels, entries); "
            f"got {tuple(data.shape)} of {data.dtype}"
        )
    _check_shape(shape, data.shape[-1])
    _check_count(len(data))
    for start in range(0, len(data), _CHUNK):
        finite = data[start : start + _CHUNK].isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            raise DataError(
                f"example {start + int(finite.int().argmin())} holds NaN or infinite values: leave it out"
            )
    _check_varied((data.amax(0) == data.amin(0)).view(-1, data.shape[-1]).any(0))
    if data.dtype != torch.float64:
        return data
    largest = data.abs().amax((0, 1) if data.dim() == 3 else 0)
    return data / largest


def _check_shape(shape: tuple[int, ...], n: int) -> None:
    if len(shape) not in (1, 2) or min(shape) < 3 or prod(shape) != n:
        raise StructureError(
            f"no grid of shape {shape} for {n} entries: give one or two sides of at least 3 "
            f"whose product is {n}"
        )


def _check_count(count: int) -> None:
    if count < _FEWEST:
        raise DataError(f"{count} examples tell no neighbours: give at least {_FEWEST}, better thousands")


def _check_varied(is_constant: Tensor) -> None:
    constant = is_constant.nonzero().flatten().tolist()
    if constant:
        raise DataError(
            f"{len(constant)} entries are constant, the first is {constant[0]}: their place cannot "
            "be found; give data in which every entry varies"
        )


def _correlations(data: Tensor) -> Array:
    """The mean over channels of the correlations between entries, float64."""
    examples, channels, n = data.shape
    parts = [data[start : start + _CHUNK] for start in range(0, examples, _CHUNK)]
    mean = sum(part.double().sum(0).cpu() for part in parts) / examples
    products = torch.zeros(channels, n, n, dtype=torch.float64)
    for part in parts:
        centred = (part.double().cpu() - mean).transpose(0, 1)
        products += centred.mT @ centred
    scale = products.diagonal(dim1=1, dim2=2).sqrt()
    correlations: Array = (products / scale[:, :, None] / scale[:, None]).mean(0).numpy()
    return correlations
