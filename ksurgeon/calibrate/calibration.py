"""What calibration knows of a site: its inputs, and where changes of its output matter."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ksurgeon.calibrate.moments import root_of

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
        weight: the harm to the outputs of a change Δ of the weight is ``weight · tr(Rᵀ R Δ E[x xᵀ] Δᵀ)`` to
            second order, where rows are independent.
    """

    moment: Tensor
    mean: Tensor
    rows: int
    gradient: Tensor | None = None
    weight: float = 0.0
    _root: Tensor | None = field(default=None, repr=False)

    @property
    def root(self) -> Tensor:
        """``L``, ``(groups, in / groups, in / groups)``, lower triangles with ``L Lᵀ = moment``."""
        if self._root is None:
            self._root = root_of(self.moment).mT.contiguous()
        return self._root

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
