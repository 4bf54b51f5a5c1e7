"""A front end for audio that is part of the model: the paper's learnable filterbank, started exactly."""

from collections.abc import Sequence
from typing import Any, Self, TypedDict, Unpack

import torch
from torch import Tensor, nn

from ksurgeon.frontend.extractors import WAVEFORMS, pipeline_of, prove
from ksurgeon.frontend.pipeline import Pipeline
from ksurgeon.frontend.waveform import KWaveform, prepared
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import Dense, Structure
from ksurgeon.kmatrix.transform import KTransform, TransformKind
from ksurgeon.options import require_names

__all__ = ["KFrontend", "filter_matrix", "holds_filters"]


_COLUMNS = 1024  # frames worked on at once where nothing is recorded


class FrontendOptions(TypedDict, total=False):
    """As ``KFrontend`` describes them."""

    filters: Structure | None
    radices: Sequence[int] | None
    symmetric: bool
    start: str
    device: torch.device | str | None
    dtype: torch.dtype | None


class KFrontend(nn.Module):
    """Frame, window, complex K-matrix that starts as the DFT, modulus squared, filters, logarithm.

    The learnable front end of Dao et al. (ICLR 2020, section 3.1 and figure 2). Parameters are the factors of
    the DFT and of the filters; it starts as exactly the features that ``pipeline`` describes.

    Args:
        pipeline: what the front end does.
        filters: structure of the matrix of filters; left out, one dense factor that holds them exactly,
            otherwise a K-matrix fitted to them.
        radices: of the DFT; the cheapest if left out.
        symmetric: whether the DFT keeps the symmetry of an FFT of real input, with about 0.7 of the
            parameters and multiplications.
        start: how the DFT starts: "exact", "random" or "empty".
        device, dtype: of the parameters; double precision where the pipeline asks for it.
    """

    window: Tensor

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        filters: Structure | None = None,
        radices: Sequence[int] | None = None,
        symmetric: bool = False,
        start: str = "exact",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.site = ""
        self.replaced: tuple[tuple[str, nn.Module], ...] = ()
        real = dtype or (torch.float64 if pipeline.double else torch.get_default_dtype())
        self.register_buffer("window", pipeline.window.detach().to(device, real, copy=True))
        options: dict[str, Any] = {"start": start, "device": device, "dtype": real}
        self.dft = KTransform("rdft", pipeline.n_fft, 0, radices=radices, symmetric=symmetric, **options)
        self.filters: KMatrix | None = None
        if pipeline.filters is not None:
            self.filters = filter_matrix(pipeline.filters, filters).to(device, real)
        self.cepstrum: KTransform | None = None
        if pipeline.cepstrum is not None and self.filters is not None:
            kind: TransformKind = "dct_ortho" if pipeline.cepstrum[1] else "dct"
            self.cepstrum = KTransform(kind, self.filters.out_features, **options)

    @classmethod
    def from_feature_extractor(cls, extractor: Any, **options: Unpack[FrontendOptions]) -> Self | KWaveform:
        """The front end that gives what a feature extractor of transformers gives, from the raw waveform.

        It is compared with the extractor on a chirp before it is returned. Extractors that hand on the
        waveform itself give a ``KWaveform``.

        Args:
            extractor: a feature extractor for audio.
            options: those of the constructor.

        Raises:
            StructureError: an extractor of a class that is not known, or set to do what is not.
            TypeError: an option that there is not.
        """
        require_names("KFrontend.from_feature_extractor", options, FrontendOptions.__annotations__)
        if type(extractor).__name__ in WAVEFORMS:
            return KWaveform(extractor.do_normalize, extractor.padding_value)
        pipeline = pipeline_of(extractor)
        prove(extractor, cls(pipeline, dtype=torch.float64))
        return cls(pipeline, **options)

    def forward(self, waveform: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Features of waveforms.

        Args:
            waveform: ``(…, samples)``, real; its dtype is that of the features.
            attention_mask: 1 where a sample is no padding, of the same shape; padding is on the right.

        Returns:
            ``(…, frames, bins)``, or ``(…, bins, frames)`` where the pipeline puts time last.
        """
        if torch.is_autocast_enabled(waveform.device.type):  # logarithms need the precision of the parameters
            with torch.autocast(waveform.device.type, enabled=False):
                return self._features(waveform, attention_mask)
        return self._features(waveform, attention_mask)

    def _features(self, waveform: Tensor, attention_mask: Tensor | None) -> Tensor:
        p = self.pipeline
        lead, samples = waveform.shape[:-1], waveform.shape[-1]
        x = waveform.to(self.window.dtype).reshape(-1, samples)
        mask = None if attention_mask is None else attention_mask.reshape(-1, samples)
        lengths = torch.full((x.shape[0],), samples, device=x.device) if mask is None else mask.sum(-1)
        spectrum = self._spectrum(prepared(x, None if mask is None else lengths, p))
        features = spectrum if p.power is None else self._logarithm(spectrum)
        if p.layout == "like":
            features = features.reshape(*lead, *features.shape[1:])
        if p.steps:
            valid = self._valid(lengths, features.shape[-2]).view(features.shape[:-1])
            for step in p.steps:
                features, valid = step(features, valid), step.mask(valid)
        if self.cepstrum is not None and p.cepstrum is not None:
            features = self.cepstrum(features)[..., : p.cepstrum[0]]
        if p.time_last:
            last = -2 if p.parts and p.power is None else -1
            features = features.transpose(last, last - 1)
        features = features.unsqueeze(1) if p.layout == "channel" else features
        return features.to(waveform.dtype.to_complex() if features.is_complex() else waveform.dtype)

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
        """Modulus to the power, ``(bins, batch, frames)``, or the spectrum ``(batch, frames, bins)``."""
        p, size = self.pipeline, len(self.window)
        count = self._frames(x.shape[1])
        if not count:
            raise ValueError(
                f"the waveform has {x.shape[1]} samples, padding included, and one frame needs "
                f"{size + p.reach}; give longer waveforms"
            )
        frames = x.unfold(1, size, p.hop)[:, :count]
        whole = p.power is None or x.is_cuda
        at_once = max(_COLUMNS // max(x.shape[0], 1), 1)
        if whole or torch.is_grad_enabled() or torch.compiler.is_compiling() or count <= at_once:
            return self._of_frames(frames)
        # What is in the cache need not be fetched again.
        return torch.cat([self._of_frames(piece) for piece in frames.split(at_once, 1)], 2)

    def _of_frames(self, frames: Tensor) -> Tensor:
        p, (batch, count, size) = self.pipeline, frames.shape
        frames = self._centred(frames)
        if self.dft.is_untouched(frames):
            spectrum = torch.fft.rfft(frames * self.window, p.n_fft)
            if p.power is None:
                return torch.view_as_real(spectrum) if p.parts else spectrum
            return self._modulus(spectrum.real, spectrum.imag).permute(2, 0, 1)
        order: Tensor = self.dft.order  # type: ignore[assignment]
        inside = order < size
        index = order if size == p.n_fft else order.clamp(max=size - 1)
        window = self.window[index] if size == p.n_fft else self.window[index] * inside
        # Vectors as columns: every step of the chain then reads and writes whole rows, and so does the order.
        columns = frames.permute(2, 0, 1).contiguous().index_select(0, index).flatten(1)
        if p.power is not None:
            modulus = self._modulus(*self.dft.as_computed(columns, 0, window).unbind())
            return self.dft.ordered(modulus, 0).unflatten(1, (batch, count))
        parts = self.dft.parts(columns, 0, window).unflatten(2, (batch, count))
        if p.parts:
            return parts.permute(2, 3, 1, 0)
        return torch.complex(parts[0].contiguous(), parts[1].contiguous()).permute(1, 2, 0)

    def _centred(self, frames: Tensor) -> Tensor:
        """Without their means, and each sample minus a part of the one before."""
        p = self.pipeline
        if p.remove_dc:
            frames = frames - frames.mean(-1, keepdim=True)
        if p.frame_preemphasis:
            before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
            frames = frames - p.frame_preemphasis * before
        return frames

    def _modulus(self, re: Tensor, im: Tensor) -> Tensor:
        p = self.pipeline
        squared = torch.addcmul(re.square(), im, im)
        if p.inside:
            squared = squared.clamp_min(p.inside) if p.inside_floor else squared + p.inside
        if p.power == 2:
            return squared
        # Not quite zero, where the square root has no derivative.
        modulus = squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()
        return modulus if p.power in (1, None) else modulus**p.power

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

    @torch.no_grad()
    def is_exact(self) -> bool:
        """Whether all parameters are still those that the pipeline gives."""
        transforms = [self.dft, *([self.cepstrum] if self.cepstrum is not None else [])]
        same = self.filters is None or holds_filters(self.filters, self.pipeline.filters)
        return same and all(transform.is_exact() for transform in transforms)

    def extra_repr(self) -> str:
        p = self.pipeline
        kind = "complex" if p.power is None else "modulus" if p.power == 1 else "power"
        return f"n_fft={p.n_fft}, window of {len(p.window)}, hop={p.hop}, {kind}, log={p.log}"


def filter_matrix(filters: Tensor, structure: Structure | None = None) -> KMatrix:
    """The transposed of ``filters`` ``(bins, filters)``, as it is or fitted with a structure."""
    matrix = filters.detach().mT.to(torch.float64)
    if structure is not None:
        return KMatrix.from_dense(matrix, structure=structure)
    rows, bins = matrix.shape
    result = KMatrix(bins, rows, structure=Dense(), start="empty", device=matrix.device, dtype=matrix.dtype)
    with torch.no_grad():
        result.factors[0].copy_(matrix)
    return result


def holds_filters(matrix: KMatrix, filters: Tensor | None) -> bool:
    """Whether the matrix is still the filters that it was made of, as they were."""
    if filters is None or not isinstance(matrix.structure, Dense):
        return False
    factor = matrix.factors[0]
    return torch.equal(factor[0, 0], filters.detach().mT.to(factor))
