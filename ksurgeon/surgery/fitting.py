"""Fit a replacement to its site: to the weight alone, or to what the site does on real inputs."""

import torch
from torch import Tensor, nn

from ksurgeon.calibrate import SiteMoments
from ksurgeon.find import Site
from ksurgeon.kmatrix.fit import fit_
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import Structure
from ksurgeon.surgery.build import dense_blocks, in_parts, site_weight

__all__ = ["fit_site", "fitted_blocks"]


def fit_site(
    matrix: KMatrix,
    weight: Tensor,
    known: SiteMoments | None = None,
    *,
    sweeps: int | None = None,
) -> float:
    """Fit a matrix to the weight of a site; with ``known`` so that its outputs on those inputs are near.

    Args:
        matrix: of the site's groups, or of its parts.
        weight: as ``in_parts`` gives it.
        known: moments of the site's inputs.
        sweeps: steps of the fit at most; see ``fit_``.

    Returns:
        Relative Frobenius error of the weight.
    """
    moment = known.moment if known is not None else None
    return fit_(matrix, weight, moment=moment, steps=sweeps)


def fitted_blocks(
    model: nn.Module, site: Site, structure: Structure, known: SiteMoments | None, sweeps: int | None = None
) -> Tensor:
    """What ``fit_site`` gives for a structure, as ``(groups, out / groups, in / groups)``."""
    groups = site.groups if site.kind == "pointwise_conv" else 1
    weight = site_weight(model, site)
    matrix = KMatrix(
        site.in_features,
        site.out_features,
        structure=structure,
        groups=groups,
        start="empty",
        device=weight.device,
        dtype=torch.promote_types(weight.dtype, torch.float32),
    )
    fit_site(matrix, in_parts(weight, 1), known, sweeps=sweeps)
    with torch.no_grad():
        return dense_blocks(matrix.to_dense().detach(), groups)
