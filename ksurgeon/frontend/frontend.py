"""A front end for audio that is part of the model: the paper's learnable filterbank, started exactly."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ksurgeon.frontend.pipeline import Pipeline
from ksurgeon.frontend.waveform import prepared
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import Chain, Structure
from ksurgeon.kmatrix.transform import KTransform

if TYPE_CHECKING:
    from ksurgeon.frontend.waveform import KWaveform

__all__ = ["KFrontend"]


class KFrontend(nn.Module):
    """Frame, window, complex K-matrix that starts as the DFT, modulus squared, filters, logarithm.

    The learnable front end of Dao et al. (ICLR 2020, section 3.1 and figure 2). Parameters are the factors of
    the DFT and of the filters; it starts as exactly the features that ``pipeline`` describes.

    Args:
        pipeline: what the front end does.
        filters: structure of the matrix of filters; left out, one dense factor that holds them exactly,
            otherwise a K-matrix fitted to them.
        device, dtype: of the parameters; double precision where the pipeline asks for it.
    """

    window: Tensor

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        filters: Structure | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.site = ""
        self.replaced: tuple[tuple[str, nn.Module], ...] = ()
        real = dtype or (torch.float64 if pipeline.double else torch.get_default_dtype())
        self.register_buffer("window", pipeline.window.detach().to(device, real, copy=True))
        self.dft = KTransform("rdft", pipeline.n_fft, 0, device=device, dtype=real)
        self.filters: KMatrix | None = None
        if pipeline.filters is not None:
            self.filters = _filters(pipeline.filters.mT.to(torch.float64), filters).to(device, real)

    @classmethod
    def from_feature_extractor(cls, extractor: Any, **options: Any) -> "KFrontend | KWaveform":
        """The front end that gives what a feature extractor of transformers gives, from the raw waveform.

        It is compared with the extractor on a chirp before it is returned. Extractors that hand on the
        waveform itself give a ``KWaveform``.

        Args:
            extractor: a feature extractor for audio.
            options: those of the constructor.

        Raises:
            StructureError: an extractor of a class that is not known, or set to do what is not.
        """
        from ksurgeon.frontend.extractors import frontend_of

        return frontend_of(extractor, **options)

    def forward(self, waveform: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Features of waveforms.

        Args:
            waveform: ``(batch, samples)`` or ``(samples,)``, real; its dtype is that of the features.
            attention_mask: 1 where a sample is no padding, ``(batch, samples)``; padding is on the right.

        Returns:
            ``(batch, frames, bins)``, or ``(batch, bins, frames)`` where the pipeline puts time last; without
            the batch if the waveform had none.
        """
        p = self.pipeline
        x = waveform.to(self.window.dtype)
        mask = attention_mask
        if x.dim() == 1:
            x, mask = x[None], None if mask is None else mask[None]
        full = torch.full((len(x),), x.shape[1], device=x.device)
        spectrum = self._spectrum(prepared(x, None if mask is None else mask.sum(-1), p))
        features = spectrum if p.power is None else self._logarithm(spectrum)
        if p.steps:
            valid = self._valid(full if mask is None else mask.sum(-1), features.shape[1])
            for step in p.steps:
                features, valid = step(features, valid), step.mask(valid)
        if p.time_last:
            features = features.transpose(-1, -2)
        features = features if waveform.dim() > 1 else features[0]
        wanted = waveform.dtype.to_complex() if features.is_complex() else waveform.dtype
        return features.to(wanted)

    def feature_mask(self, attention_mask: Tensor) -> Tensor:
        """Which frames are no padding: ``(batch, frames)`` for a mask of samples ``(batch, samples)``."""
        zeros = torch.zeros_like(attention_mask, dtype=self.window.dtype)
        x = prepared(zeros, None, self.pipeline)
        valid = self._valid(attention_mask.sum(-1), self._frames(x.shape[1]))
        for step in self.pipeline.steps:
            valid = step.mask(valid)
        return valid

    def _valid(self, lengths: Tensor, frames: int) -> Tensor:
        p = self.pipeline
        lengths = lengths.clamp(p.least, p.cut_to)
        count = torch.div(lengths + p.valid[0], p.hop, rounding_mode="floor") + p.valid[1]
        return torch.arange(frames, device=lengths.device) < count[:, None]

    def _frames(self, samples: int) -> int:
        p = self.pipeline
        return max(1 + (samples - len(p.window) - p.reach) // p.hop - p.drop_last, 0)

    def _spectrum(self, x: Tensor) -> Tensor:
        """Modulus to the power, ``(bins, batch, frames)``, or complex numbers ``(batch, frames, bins)``."""
        p, size = self.pipeline, len(self.window)
        count = self._frames(x.shape[1])
        if not count:
            raise ValueError(
                f"the waveform has {x.shape[1]} samples, padding included, and one frame needs "
                f"{size + p.reach}; give longer waveforms"
            )
        # Vectors as columns: every step of the chain then reads and writes whole rows.
        frames = x.unfold(1, size, p.hop)[:, :count].permute(2, 0, 1)
        if p.remove_dc:
            frames = frames - frames.mean(0, keepdim=True)
        if p.frame_preemphasis:
            before = torch.cat([frames[:1], frames[:-1]])
            frames = frames - p.frame_preemphasis * before
        order: Tensor = self.dft.order  # type: ignore[assignment]
        inside = order < size
        index = order if size == p.n_fft else order.clamp(max=size - 1)
        window = self.window[index] if size == p.n_fft else self.window[index] * inside
        columns = frames.index_select(0, index).flatten(1)
        parts = self.dft.parts(columns, 0, window)
        bins = self.dft.out_features
        if p.power is None:
            parts = parts.view(2, bins, len(x), count).permute(2, 3, 1, 0)
            return torch.complex(parts[..., 0], parts[..., 1])
        re, im = parts[:bins], parts[bins:]
        squared = torch.addcmul(re.square(), im, im)
        if p.inside:
            squared = squared.clamp_min(p.inside) if p.inside_floor else squared + p.inside
        if p.power == 2:
            return squared.view(bins, len(x), count)
        # Not quite zero, where the square root has no derivative.
        modulus = squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()
        return (modulus if p.power == 1 else modulus**p.power).view(bins, len(x), count)

    def _logarithm(self, spectrum: Tensor) -> Tensor:
        p = self.pipeline
        if self.filters is not None:
            spectrum = self.filters(spectrum, 0)
        features = spectrum.permute(1, 2, 0)
        if p.add_floor:
            features = features + p.floor
        elif p.floor:
            features = features.clamp_min(p.floor)
        if p.log is None:
            return features
        if p.log == "log":
            return features.log()
        return features.log10() * (10 if p.log == "db" else 1)

    def extra_repr(self) -> str:
        p = self.pipeline
        kind = "complex" if p.power is None else "modulus" if p.power == 1 else "power"
        return f"n_fft={p.n_fft}, window of {len(p.window)}, hop={p.hop}, {kind}, log={p.log}"


def _filters(matrix: Tensor, structure: Structure | None) -> KMatrix:
    if structure is not None:
        return KMatrix.from_dense(matrix, structure=structure)
    filters, bins = matrix.shape
    exact = Chain(factors=((1, filters, bins, 1),))  # type: ignore[arg-type]
    result = KMatrix(bins, filters, structure=exact, start="empty", dtype=matrix.dtype)
    with torch.no_grad():
        result.factors[0].copy_(matrix)
    return result
