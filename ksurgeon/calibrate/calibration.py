"""What calibration knows of a site: its inputs, and where changes of its output matter."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ksurgeon.calibrate.moments import root_of
from ksurgeon.fit.two_sided import triangle

__all__ = ["Calibration", "SiteMoments"]


@dataclass
class SiteMoments:
    """Moments of one site.

    Attributes:
        moment: ``E[x xᵀ]`` of its inputs, ``(groups, in / groups, in / groups)``, float64.
        mean: ``E[x]``, ``(in,)``, float64.
        rows: vectors seen.
        gradient: ``R``, ``(groups, rows, out / groups)``, where ``Rᵀ R`` is the second moment of the slopes
            of the outputs along a change of this site's output, one vector a row of the site; None where no
            gradient reaches it.
        weight: the harm to the outputs of a change Δ of the weight is ``weight · tr(Rᵀ R Δ M Δᵀ)`` to second
            order, where rows are independent; M is ``fitted_moment``.
        shiftable: whether a bias of the layer's own can make up for what a change of the weight makes of the
            mean input.
        target: weight to be fitted in the place of the site's own, ``(groups, out / groups, in / groups)``.
        output_mean: mean output that is wanted, bias included, ``(out,)``; None for the site's own.
        sweeps: the most that a fit takes; None for as many as gain.
    """

    moment: Tensor
    mean: Tensor
    rows: int
    gradient: Tensor | None = None
    weight: float = 0.0
    shiftable: bool = False
    target: Tensor | None = None
    output_mean: Tensor | None = None
    sweeps: int | None = None
    _root: Tensor | None = field(default=None, init=False, repr=False)
    _fitted: Tensor | None = field(default=None, init=False, repr=False)
    _slopes: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def root(self) -> Tensor:
        """``L``, ``(groups, in / groups, in / groups)``, lower triangles with ``L Lᵀ = fitted_moment``."""
        if self._root is None:
            moment = self.moment
            if self.shiftable:
                mean = self.mean.view(len(moment), -1)
                moment = moment - mean[:, :, None] * mean[:, None]
            self._root = root_of(moment).mT.contiguous()
        return self._root

    @property
    def fitted_moment(self) -> Tensor:
        """What a fit weighs with: the moment, about the mean where a bias makes up for the rest.

        Of a rounded moment less the mean, this is what is positive semidefinite.
        """
        if not self.shiftable:
            return self.moment
        if self._fitted is None:
            self._fitted = self.root @ self.root.mT
        return self._fitted

    @property
    def slopes(self) -> Tensor | None:
        """What a fit weighs outputs with: the ``triangle`` of ``gradient``, where that has a row for every
        output and so tells all directions apart."""
        known = self.gradient
        if known is None or known.shape[1] < known.shape[2]:
            return None
        if self._slopes is None:
            self._slopes = triangle(known)
        return self._slopes

    def copy(self, sweeps: int | None = None) -> "SiteMoments":
        """One for quicker fits, whose derived matrices, as large as the moments, are let go with it."""
        return replace(self, sweeps=sweeps)

    def harm_of(self, change: Tensor) -> float | None:
        """Predicted harm of a change of the weight, ``(groups, out / groups, in / groups)``.

        None where no gradient is known.
        """
        if self.gradient is None:
            return None
        dtype = torch.float32
        slopes = self.gradient.to(dtype) @ change.to(dtype) @ self.root.to(dtype)
        return self.weight * float(slopes.double().square().sum())


@dataclass
class Calibration:
    """Moments of all sites that were reached, by path.

    Attributes:
        harm: name of the harm whose slopes the gradients are.
        batches: batches seen.
    """

    sites: dict[str, SiteMoments]
    harm: str = ""
    batches: int = 0
