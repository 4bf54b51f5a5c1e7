"""Filters on a spectrogram as a module of their own."""

from typing import Literal

import torch
from torch import Tensor, nn

from ksurgeon.frontend.frontend import filter_matrix, holds_filters
from ksurgeon.frontend.steps import Step
from ksurgeon.kmatrix.structures import Structure

__all__ = ["KFilters"]


class KFilters(nn.Module):
    """A learnable matrix of filters along one dimension of a spectrogram, and decibels after it if wanted.

    Args:
        filters: ``(bins, filters)``.
        dim: -1 for spectrograms ``(…, frames, bins)``, -2 for ``(…, bins, frames)``.
        decibels: factor of log10, 0 for none.
        floor: least value under the logarithm.
        shift: added after it.
        steps: what is done then, to features ``(…, frames, filters)``.
        structure: of the matrix; left out, one dense factor that holds the filters exactly.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        filters: Tensor,
        dim: Literal[-1, -2] = -1,
        *,
        decibels: float = 0.0,
        floor: float = 1e-10,
        shift: float = 0.0,
        steps: tuple[Step, ...] = (),
        structure: Structure | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.original, self.dim = filters.detach().clone(), dim
        self.decibels, self.floor, self.shift, self.steps = decibels, floor, shift, steps
        self.site = ""
        self.replaced: tuple[tuple[str, nn.Module], ...] = ()
        self.filters = filter_matrix(filters, structure).to(device, dtype or torch.get_default_dtype())

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Map ``(…, frames, bins)`` to ``(…, frames, filters)``, or both dimensions the other way round."""
        if torch.is_autocast_enabled(spectrogram.device.type):
            with torch.autocast(spectrogram.device.type, enabled=False):
                return self._apply_to(spectrogram)
        return self._apply_to(spectrogram)

    def _apply_to(self, spectrogram: Tensor) -> Tensor:
        features: Tensor = self.filters(spectrogram.to(self.filters.factors[0].dtype), self.dim)
        if self.decibels:
            features = features.clamp_min(self.floor).log10() * self.decibels + self.shift
        for step in self.steps:
            features = step(features, torch.ones_like(features[..., 0], dtype=torch.bool))
        return features.to(spectrogram.dtype)

    @torch.no_grad()
    def is_exact(self) -> bool:
        """Whether the matrix is still the filters that it was made of."""
        return holds_filters(self.filters, self.original)

    def extra_repr(self) -> str:
        return f"dim={self.dim}" + (f", {self.decibels:g} · log10" if self.decibels else "")
