"""Random tensors for one model, and the sizes that a user asks of them."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

__all__ = ["Random", "resized"]


class Random:
    """Random tensors on the CPU, in the dtype of a model's parameters, from a generator of their own."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        parameters = [p for p in model.parameters() if p.is_floating_point() or p.is_complex()]
        self.dtype = parameters[0].dtype if parameters else torch.get_default_dtype()
        self.home = parameters[0].device if parameters else torch.device("cpu")

    @property
    def device(self) -> torch.device:
        """Where the model is; the CPU for one on the meta device."""
        return torch.device("cpu") if self.home.type == "meta" else self.home

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.dtype)

    def tokens(self, vocabulary: int, length: int, special: Collection[int] = ()) -> Tensor:
        """Tokens of shape (1, length), int64, none of them special."""
        low = min(10, vocabulary - 1)  # below are the special tokens of most vocabularies
        allowed = torch.tensor([t for t in range(low, vocabulary) if t not in special] or [low])
        return allowed[torch.randint(len(allowed), (1, length), generator=self.generator)]


def resized(shape: tuple[int, ...] | None, sizes: tuple[int, ...] | None) -> tuple[int, ...]:
    """``shape`` with its last entries replaced: one size stands for a square image, too."""
    if sizes is None:
        return shape or ()
    if shape is None or len(sizes) > len(shape):
        return sizes
    if len(sizes) == 1 and len(shape) > 2:
        sizes *= 2
    return (*shape[: -len(sizes)], *sizes)
