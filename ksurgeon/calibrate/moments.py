"""Second moments of the vectors that pass a place, as running sums that never grow."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ksurgeon.calibrate.modes import without_autocast
from ksurgeon.errors import InputError
from ksurgeon.kmatrix.subspace import triangles

__all__ = ["Gram", "HashedMoment", "Moment", "SketchedMoment", "root_of"]


class Moment(ABC):
    """``E[x xᵀ]`` of vectors that are added a batch at a time.

    Attributes:
        features: entries of a vector, all groups together.
        groups: blocks of equal size; products between different blocks are not kept.
        count: vectors added.
    """

    def __init__(self, features: int, groups: int = 1, device: torch.device | str = "cpu") -> None:
        self.features, self.groups, self.count = features, groups, 0
        self._sum = torch.zeros(features, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Add ``(n, features)`` vectors of any floating dtype; autocast changes nothing.

        Raises:
            InputError: entries that are NaN or infinite; nothing is added.
        """
        rows = rows.detach()
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        total = rows.sum(0, dtype=torch.float64)
        if not bool(torch.isfinite(total).all()):
            raise InputError("NaN or infinite entries")
        with without_autocast(rows.device):
            self._add(rows)
        self._sum += total
        self.count += len(rows)

    @property
    def mean(self) -> Tensor:
        """``E[x]``, ``(features,)``, float64."""
        return self._sum / max(self.count, 1)

    @abstractmethod
    def _add(self, rows: Tensor) -> None: ...

    @abstractmethod
    def matrix(self) -> Tensor:
        """``E[x xᵀ]``, ``(groups, features / groups, features / groups)``, float64."""

    def root(self) -> Tensor:
        """``R``, ``(groups, rows, features / groups)``, with ``Rᵀ R = E[x xᵀ]`` up to 1e-9 of the trace."""
        return root_of(self.matrix())


def root_of(matrix: Tensor) -> Tensor:
    """Upper triangles ``R`` with ``Rᵀ R = matrix`` for positive semidefinite ``(…, n, n)``, by Cholesky
    with a ridge of 1e-9 of the mean of the diagonal, or as many times ten of it as it takes.

    Raises:
        InputError: entries that are NaN or infinite.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise InputError("an input covariance is NaN or infinite: the squares of the vectors overflow")
    scale = matrix.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-300)[..., None, None]
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    ridge = 1e-9
    while True:
        lower = triangles(matrix / scale + ridge * eye)
        if lower is not None:
            return scale.sqrt() * lower.mT
        ridge *= 10


class Gram(Moment):
    """The exact second moment: products in the dtype of the vectors, at least float32, sums in float64."""

    def __init__(self, features: int, groups: int = 1, device: torch.device | str = "cpu") -> None:
        super().__init__(features, groups, device)
        size = features // groups
        self._products = torch.zeros(groups, size, size, dtype=torch.float64, device=device)

    def _add(self, rows: Tensor) -> None:
        blocks = rows.unflatten(1, (self.groups, -1)).movedim(1, 0)
        self._products += blocks.mT @ blocks

    def matrix(self) -> Tensor:
        return self._products / max(self.count, 1)


class SketchedMoment(Moment):
    """Second moment of long vectors in the memory of ``2 · size`` of them.

    Frequent Directions (Ghashami, Liberty, Phillips, Woodruff, 2016): what is kept is below the exact moment
    by at most the part of its trace beyond the leading directions, over their number. The trace itself is
    kept, and its missing part is spread evenly.
    """

    def __init__(self, features: int, size: int, device: torch.device | str = "cpu") -> None:
        super().__init__(features, 1, device)
        self.size, self._trace = size, 0.0
        self._rows = torch.zeros(0, features, dtype=torch.float64, device=device)

    def _add(self, rows: Tensor) -> None:
        self._trace += float(rows.double().square().sum())
        for part in rows.split(self.size):
            self._rows = torch.cat([self._rows, part.double()])
            if len(self._rows) >= 2 * self.size:
                self._shrink()

    def _shrink(self) -> None:
        values, vectors = torch.linalg.eigh(self._rows @ self._rows.T)
        values, vectors = values.flip(0)[: self.size].clamp(min=0), vectors.flip(1)[:, : self.size]
        kept = (values - values[-1]).clamp(min=0)
        scale = torch.where(values > 0, (kept / values.clamp(min=1e-300)).sqrt(), 0.0)
        self._rows = (vectors * scale).T @ self._rows

    def matrix(self) -> Tensor:
        kept = self._rows.T @ self._rows
        rest = max(self._trace - float(kept.diagonal().sum()), 0.0) / self.features
        kept.diagonal().add_(rest)
        return kept[None] / max(self.count, 1)


class HashedMoment(Moment):
    """Random rows ``C``, ``(groups, size, features / groups)``, with ``E[Cᵀ C] = Σ x xᵀ``.

    Every vector is added to one of the rows with a random sign (Charikar, Chen, Farach-Colton, 2002): cheap,
    without bias, and good for quadratic forms only.
    """

    def __init__(
        self, features: int, size: int, groups: int = 1, device: torch.device | str = "cpu", seed: int = 0
    ) -> None:
        super().__init__(features, groups, device)
        self._random = torch.Generator().manual_seed(seed)
        self._rows = torch.zeros(size, features, dtype=torch.float64, device=device)

    def _add(self, rows: Tensor) -> None:
        place = torch.randint(len(self._rows), (len(rows),), generator=self._random).to(rows.device)
        sign = torch.randint(0, 2, (len(rows), 1), generator=self._random).to(rows.device) * 2.0 - 1.0
        self._rows.index_add_(0, place, rows.double() * sign)

    def root(self) -> Tensor:
        """``R``, ``(groups, size, features / groups)``, with ``E[Rᵀ R] = E[x xᵀ]``, float64."""
        blocks = self._rows.unflatten(1, (self.groups, -1)).movedim(1, 0)
        return blocks / max(self.count, 1) ** 0.5

    def matrix(self) -> Tensor:
        root = self.root()
        return root.mT @ root
