"""What a front end does to its features after the logarithm, one small class for each habit."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Affine", "Fill", "Length", "Normalise", "Range", "Repeat", "Stack", "Step"]


@dataclass(frozen=True)
class Step(ABC):
    """Maps features ``(…, frames, bins)``; ``valid`` is a mask ``(…, frames)``."""

    @abstractmethod
    def __call__(self, features: Tensor, valid: Tensor) -> Tensor:
        """The features after the step."""

    def mask(self, valid: Tensor) -> Tensor:
        """The mask after the step."""
        return valid


@dataclass(frozen=True)
class Range(Step):
    """Nothing lies further than ``below`` under ``top``, or under the maximum.

    The maximum is that of the clip, of all channels of a clip (of the batch where there are no channels), or
    of everything, as ``over`` says.
    """

    below: float
    top: float | None = None
    over: Literal["clip", "channels", "all"] = "clip"

    def __call__(self, features: Tensor, valid: Tensor) -> Tensor:
        if self.top is not None:
            return features.clamp_min(self.top - self.below)
        dims = {"clip": (-2, -1), "channels": (-3, -2, -1), "all": tuple(range(features.dim()))}[self.over]
        top = features.amax(dims if features.dim() >= len(dims) else (-2, -1), keepdim=True)
        return torch.maximum(features, top - self.below)


@dataclass(frozen=True)
class Affine(Step):
    """``(x + shift) * factor``; either may be a vector with an entry for each bin."""

    shift: float | tuple[float, ...] = 0.0
    factor: float | tuple[float, ...] = 1.0

    def __call__(self, features: Tensor, valid: Tensor) -> Tensor:
        shift, factor = (torch.as_tensor(v).to(features) for v in (self.shift, self.factor))
        return (features + shift) * factor


@dataclass(frozen=True)
class Normalise(Step):
    """Mean zero and variance one for every bin of a clip, over its valid frames.

    The standard deviation is ``sqrt(variance + inside) + outside``.
    """

    correction: int = 0
    inside: float = 0.0
    outside: float = 0.0
    means: bool = True
    deviations: bool = True

    def __call__(self, features: Tensor, valid: Tensor) -> Tensor:
        there = valid.unsqueeze(-1).to(features)
        count = there.sum(-2, keepdim=True)
        mean = (features * there).sum(-2, keepdim=True) / count
        centred = features - mean
        variance = (centred.square() * there).sum(-2, keepdim=True) / (count - self.correction)
        result = centred if self.means else features
        return result / ((variance + self.inside).sqrt() + self.outside) if self.deviations else result


@dataclass(frozen=True)
class Fill(Step):
    """Frames that are not valid get one value."""

    value: float = 0.0

    def __call__(self, features: Tensor, valid: Tensor) -> Tensor:
        return features.masked_fill(~valid.unsqueeze(-1), self.value)


@dataclass(frozen=True)
class Length(Step):
    """Pad with ``value``, and cut if told to, to a number of frames or to a multiple of one."""

    frames: int | None = None
    multiple: int = 1
    cut: bool = False
    value: float = 0.0

    def _missing(self, frames: int) -> int:
        return (frames if self.frames is None else self.frames) - frames + (-frames % self.multiple)

    def __call__(self, features: Tensor, valid: Tensor) -> Tensor:
        missing = self._missing(features.shape[-2])
        if missing > 0:
            return F.pad(features, (0, 0, 0, missing), value=self.value)
        return features[..., :missing, :] if missing < 0 and self.cut else features

    def mask(self, valid: Tensor) -> Tensor:
        missing = self._missing(valid.shape[-1])
        return F.pad(valid, (0, missing)) if missing > 0 or self.cut else valid


@dataclass(frozen=True)
class Stack(Step):
    """So many frames become one that is as many times as long; what is left over at the end is dropped."""

    frames: int

    def __call__(self, features: Tensor, valid: Tensor) -> Tensor:
        whole = features.shape[-2] // self.frames
        return features[..., : whole * self.frames, :].unflatten(-2, (whole, self.frames)).flatten(-2)

    def mask(self, valid: Tensor) -> Tensor:
        return valid[..., 1 :: self.frames]


@dataclass(frozen=True)
class Repeat(Step):
    """Copies of the features along a new dimension before the frames."""

    copies: int = 1

    def __call__(self, features: Tensor, valid: Tensor) -> Tensor:
        return features.unsqueeze(-3).repeat_interleave(self.copies, -3)
