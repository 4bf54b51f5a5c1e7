"""Fit a replacement to its site: to the weight alone, or to what the site does on real inputs."""

import torch
from torch import Tensor, nn

from ksurgeon.calibrate import SiteMoments
from ksurgeon.find import Site
from ksurgeon.kmatrix.fit import fit_
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import LowRank, Structure
from ksurgeon.surgery.build import dense_blocks, in_parts, site_weight

__all__ = ["fit_site", "fitted_blocks"]


def fit_site(
    matrix: KMatrix,
    weight: Tensor,
    known: SiteMoments | None = None,
    *,
    quick: bool = False,
) -> float:
    """Fit a matrix to the weight of a site; with ``known`` so that its outputs on those inputs are near.

    Args:
        matrix: of the site's groups, or of its parts.
        weight: as ``in_parts`` gives it.
        known: moments of the site's inputs.
        quick: the start alone, without refinement.

    Returns:
        Relative Frobenius error of the weight.
    """
    if known is not None and isinstance(matrix.structure, LowRank):
        return _low_rank(matrix, weight, known)
    return fit_(matrix, weight, steps=0 if quick else None)


def fitted_blocks(
    model: nn.Module, site: Site, structure: Structure, known: SiteMoments | None, *, quick: bool = False
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
    fit_site(matrix, in_parts(weight, 1), known, quick=quick)
    with torch.no_grad():
        return dense_blocks(matrix.to_dense().detach(), groups)


@torch.no_grad()
def _low_rank(matrix: KMatrix, weight: Tensor, known: SiteMoments) -> float:
    """The low rank of least ``‖(K − W) E[x xᵀ]^½‖``: the weight's outputs in their leading directions."""
    blocks = dense_blocks(weight, matrix.groups).double()
    root = known.root
    if len(root) != matrix.groups:
        root = root.expand(matrix.groups, -1, -1)
    u, *_ = torch.linalg.svd(blocks @ root, full_matrices=False)
    rank = matrix.patterns[0].b
    left = u[..., :rank]
    right = left.mT @ blocks
    scale = (torch.linalg.vector_norm(right, dim=-1) + 1e-300).sqrt()
    matrix.factors[0].copy_((right / scale[..., None])[:, None])
    matrix.factors[1].copy_((left * scale[:, None])[:, None])
    fitted = left @ right
    norm = torch.linalg.vector_norm(blocks)
    return float(torch.linalg.vector_norm(fitted - blocks) / norm) if norm > 0 else 0.0
