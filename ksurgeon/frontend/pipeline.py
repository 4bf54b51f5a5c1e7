"""What a front end for audio does, as data."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ksurgeon.frontend.steps import Step

__all__ = ["Pipeline"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pipeline:
    """From a waveform to features: frame, window, DFT, modulus, filters, logarithm.

    Lengths are in samples. What is done to the waveform comes first, in the order of the fields.

    Attributes:
        n_fft: size of the DFT; frames shorter than it are filled up with zeros.
        hop: samples from one frame to the next.
        window: window, as long as a frame.
        filters: filters ``(bins of the DFT, filters)``; None leaves the spectrum.
        cut_to: longer clips are cut.
        tile_to: shorter clips are repeated as often as they fit.
        pad_to, pad_multiple: shorter clips are filled up with zeros to a length, and to a multiple of one.
        scale: every sample is multiplied by it.
        dither: noise that depends on nothing but the length of the clip is added (Cohere's ASR).
        preemphasis: each sample minus so much of the one before, over the whole clip.
        pad: samples put before and after.
        pad_mode: what they are.
        pad_clips: whether each clip of a padded batch is put in at its own end, and not the batch's.
        end_pad: zeros are added at the end until the length is a multiple of the hop.
        reach: samples that a frame needs beyond the window, only for the number of frames.
        remove_dc: the mean of each frame is subtracted.
        frame_preemphasis: each sample of a frame minus so much of the one before, the first of itself.
        drop_last: frames dropped at the end.
        power: of the modulus; 1 or 2. None gives the complex spectrum.
        inside: added to the squared modulus, or its least value where ``inside_floor``.
        floor: least value under the logarithm, or what is added where ``add_floor``.
        log: "log", "log10", "db" (10 · log10) or None.
        steps: what is done after the logarithm.
        least: clips that are shorter count as so long.
        valid: ``(a, b)``: a clip of length L has ``(L + a) // hop + b`` valid frames.
        double: whether single precision does not do for bins far below the loudest of their frame.
        cepstrum: how many coefficients of a DCT-II are taken of that at last, and whether it is orthonormal.
        layout: "like" keeps the dimensions before the samples, "batch" makes them one, "channel" adds another
            of size 1 to that.
        parts: whether a complex spectrum is given as real and imaginary parts along a last dimension.
        time_last: whether the features are ``(…, bins, frames)``.
    """

    n_fft: int
    hop: int
    window: Tensor
    filters: Tensor | None = None
    cut_to: int | None = None
    tile_to: int | None = None
    pad_to: int | None = None
    pad_multiple: int = 1
    scale: float = 1.0
    dither: float = 0.0
    preemphasis: float = 0.0
    pad: tuple[int, int] = (0, 0)
    pad_mode: Literal["reflect", "constant", "replicate", "circular"] = "reflect"
    pad_clips: bool = False
    end_pad: bool = False
    reach: int = 0
    remove_dc: bool = False
    frame_preemphasis: float = 0.0
    drop_last: int = 0
    power: float | None = 2.0
    inside: float = 0.0
    inside_floor: bool = False
    floor: float = 0.0
    add_floor: bool = False
    log: Literal["log", "log10", "db"] | None = None
    steps: tuple[Step, ...] = ()
    least: int = 0
    valid: tuple[int, int] = (0, 1)
    double: bool = False
    cepstrum: tuple[int, bool] | None = None
    layout: Literal["like", "batch", "channel"] = "like"
    parts: bool = False
    time_last: bool = False
