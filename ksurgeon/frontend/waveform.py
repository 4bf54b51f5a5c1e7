"""What a front end does to a batch of waveforms before it cuts them into frames."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ksurgeon.frontend.pipeline import Pipeline

__all__ = ["KWaveform", "prepared", "rounded_up"]


def prepared(x: Tensor, lengths: Tensor | None, pipeline: Pipeline) -> Tensor:
    """Waveforms ``(batch, samples)`` ready to be framed."""
    p = pipeline
    if p.cut_to is not None and x.shape[1] > p.cut_to:
        x = x[:, : p.cut_to]
        lengths = None if lengths is None else lengths.clamp(max=p.cut_to)
    if p.tile_to is not None and (x.shape[1] < p.tile_to or lengths is not None):
        x, lengths = _tiled(x, lengths, p.tile_to), None
    size = max(x.shape[1], p.pad_to or 0)
    size = rounded_up(size, p.pad_multiple)
    if size > x.shape[1]:
        if p.pad_clips and lengths is None:
            lengths = torch.full((x.shape[0],), x.shape[1], device=x.device)
        x = F.pad(x, (0, size - x.shape[1]))
    if p.scale != 1:
        x = x * p.scale
    if p.dither:
        x = x + _dither(x, lengths) * p.dither
    if p.preemphasis:
        x = torch.cat([x[:, :1], x[:, 1:] - p.preemphasis * x[:, :-1]], 1)
        if lengths is not None:
            x = x.masked_fill(torch.arange(x.shape[1], device=x.device) >= lengths[:, None], 0)
    right = -x.shape[1] % p.hop if p.end_pad else 0
    left, right = p.pad[0], p.pad[1] + right
    if not left and not right:
        return x
    if p.pad_mode != "reflect":
        return F.pad(x, (left, right), mode=p.pad_mode)
    if lengths is None and max(left, right) < x.shape[1]:
        # What F.pad does, which takes five times as long.
        ends = x[:, 1 : left + 1].flip(1), x[:, x.shape[1] - right - 1 : -1].flip(1)
        return torch.cat([ends[0], x, ends[1]], 1)
    return _reflected(x, lengths if p.pad_clips else None, left, right)


def rounded_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def _tiled(x: Tensor, lengths: Tensor | None, size: int) -> Tensor:
    """Each clip as many times as it fits into ``size``, then zeros."""
    own = torch.full((x.shape[0],), x.shape[1], device=x.device) if lengths is None else lengths
    own = own[:, None]
    time = torch.arange(size, device=x.device)[None]
    return x.gather(1, time % own).masked_fill(time >= size // own * own, 0)


def _reflected(x: Tensor, lengths: Tensor | None, left: int, right: int) -> Tensor:
    """Reflected at both ends, or each clip at its own, again and again where it is short."""
    own = torch.full((x.shape[0],), x.shape[1], device=x.device) if lengths is None else lengths
    last = (own - 1).clamp(min=0)[:, None]
    time = torch.arange(-left, x.shape[1] + right, device=x.device)[None]
    period = (2 * last).clamp(min=1)
    folded = time % period
    return x.gather(1, torch.minimum(folded, period - folded).clamp(max=x.shape[1] - 1) * (last > 0))


def _dither(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Noise drawn with the length of the clip as its seed."""
    noise = torch.zeros_like(x)
    sizes = [x.shape[1]] * x.shape[0] if lengths is None else lengths.tolist()
    for row, size in zip(noise, sizes, strict=True):
        generator = torch.Generator(device=x.device).manual_seed(int(size))
        row[: int(size)] = torch.randn(int(size), device=x.device, generator=generator)
    return noise


class KWaveform(nn.Module):
    """The front end of models that take the waveform itself: mean zero and variance one for every clip.

    Args:
        normalise: whether to do so; otherwise only samples that are padding become ``value``.
        value: what samples that are padding become.
    """

    def __init__(self, normalise: bool = True, value: float = 0.0) -> None:
        super().__init__()
        self.normalise, self.value = normalise, value

    def forward(self, waveform: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map ``(batch, samples)``; the mask is 1 where a sample is no padding."""
        x = waveform
        there = torch.ones_like(x) if attention_mask is None else attention_mask.to(x.dtype)
        if self.normalise:
            count = there.sum(-1, keepdim=True)
            mean = (x * there).sum(-1, keepdim=True) / count
            variance = ((x - mean).square() * there).sum(-1, keepdim=True) / count
            x = (x - mean) / (variance + 1e-7).sqrt()
        return x if attention_mask is None else x.masked_fill(attention_mask == 0, self.value)

    def extra_repr(self) -> str:
        return f"normalise={self.normalise}"
