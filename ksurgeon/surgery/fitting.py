"""Fit a replacement to its site: to the weight alone, or to what the site does on real inputs."""

import torch
from torch import Tensor, nn

from ksurgeon.calibrate import SiteMoments
from ksurgeon.find import Site
from ksurgeon.fit import fit_
from ksurgeon.kmatrix.matrix import new_matrix
from ksurgeon.kmatrix.structured import StructuredMatrix
from ksurgeon.kmatrix.structures import Structure
from ksurgeon.surgery.build import dense_blocks, in_parts, site_weight

__all__ = ["fit_layer", "fit_site", "fitted_blocks", "shift_bias"]


def fit_site(
    matrix: StructuredMatrix,
    weight: Tensor,
    known: SiteMoments | None = None,
) -> float:
    """Fit a matrix to the weight of a site; with ``known`` so that its outputs on those inputs are near.

    Where ``known`` tells where changes of the outputs matter, they are brought near there.

    Args:
        matrix: of the site's groups, or of its parts.
        weight: as ``in_parts`` gives it.
        known: moments of the site's inputs, and the slopes at its outputs.

    Returns:
        Relative Frobenius error of the weight, also where ``known`` gives another target.
    """
    if known is None:
        return fit_(matrix, weight)
    target = weight.detach()
    if known.target is not None:
        whole = torch.block_diag(*known.target)
        target = in_parts(whole, weight.shape[1] // whole.shape[1]).to(weight)
    fit_(matrix, target, moment=known.fitted_moment, slopes=known.slopes, steps=known.sweeps)
    norm = torch.linalg.vector_norm(weight)
    with torch.no_grad():
        return float(torch.linalg.vector_norm(matrix.to_dense() - weight) / norm) if norm > 0 else 0.0


def fit_layer(new: nn.Module, model: nn.Module, site: Site, known: SiteMoments | None) -> float:
    """Fit a K-layer to the site that it is to replace, its bias too where data tell.

    Args:
        new: has a ``matrix``.
        model: has the site.
        site: its ``parts`` as the layer has them.
        known: of the site's inputs.

    Returns:
        As of ``fit_site``.
    """
    assert isinstance(new.matrix, StructuredMatrix)
    weight = site_weight(model, site).detach()
    error = fit_site(new.matrix, in_parts(weight, site.parts), known)
    if known is not None and site.has_bias and not site.parameter:
        wanted = known.output_mean
        if wanted is None:
            bias = model.get_submodule(site.path).bias
            assert isinstance(bias, Tensor)
            wanted = weight.double() @ known.mean + bias.detach()
        shift_bias(new, new.matrix, wanted, known.mean)
    return error


@torch.no_grad()
def shift_bias(layer: nn.Module, matrix: StructuredMatrix, wanted: Tensor, mean: Tensor) -> None:
    """Give a layer another bias, such that its mean output is as wanted.

    Args:
        layer: its ``bias`` is replaced, not changed, for the layer that it stands for may share it.
        matrix: the layer's.
        wanted: mean output, ``(out,)``.
        mean: mean input, ``(in,)``.
    """
    old = layer.bias
    assert isinstance(old, Tensor)
    dense = matrix.to_dense().double()
    parts = dense.shape[1] // len(mean)
    bias = (wanted - dense @ mean.repeat(parts)).to(old.dtype)
    layer.bias = nn.Parameter(bias, requires_grad=old.requires_grad)


def fitted_blocks(model: nn.Module, site: Site, structure: Structure, known: SiteMoments) -> Tensor:
    """What ``fit_site`` gives for a structure, as ``(groups, out / groups, in / groups)``."""
    weight = site_weight(model, site)
    matrix = new_matrix(
        site.in_features,
        site.out_features,
        structure=structure,
        groups=site.blocks,
        start="empty",
        device=weight.device,
        dtype=torch.promote_types(weight.dtype, torch.float32),
    )
    fit_site(matrix, in_parts(weight, 1), known)
    with torch.no_grad():
        return dense_blocks(matrix.to_dense().detach(), site.blocks)
