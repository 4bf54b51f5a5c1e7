"""Which backend each device got, and the short cuts of those in use."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ksurgeon.kernels.backend import Backend

__all__ = ["CHOSEN", "Chosen"]

_ShortCut = Callable[..., Tensor | None]


def _none(*arguments: object) -> None:
    return None


class Chosen:
    """What was chosen so far; it is kept, as reading the environment takes as long as a small product.

    Attributes:
        by_device: the backend of each device that had a product.
        at_once, int8_at_once: the short cuts of these backends: most often of one, called without looking
            further.
    """

    __slots__ = ("_backends", "at_once", "by_device", "int8_at_once")

    def __init__(self) -> None:
        self.by_device: dict[torch.device, Backend] = {}
        self.use(())

    def use(self, backends: Sequence[Backend]) -> None:
        """Take the short cuts of these backends."""
        self._backends = tuple(backends)
        self.at_once: _ShortCut = self._first("at_once")
        self.int8_at_once: _ShortCut = self._first("int8_at_once")

    def use_also(self, backend: Backend) -> None:
        """Take the short cuts of one more."""
        if backend not in self._backends:
            self.use((*self._backends, backend))

    def _first(self, name: str) -> _ShortCut:
        default = getattr(Backend, name)
        able = [getattr(b, name) for b in self._backends if getattr(type(b), name) is not default]

        def first(*arguments: object) -> Tensor | None:
            return next((y for short_cut in able if (y := short_cut(*arguments)) is not None), None)

        return (able[0] if len(able) == 1 else first) if able else _none

    def clear(self) -> None:
        """Choose anew."""
        self.by_device.clear()
        self.use(())

    def state(self) -> tuple[dict[torch.device, Backend], Sequence[Backend]]:
        """For ``restore``."""
        return dict(self.by_device), self._backends

    def restore(self, state: tuple[dict[torch.device, Backend], Sequence[Backend]]) -> None:
        """What was chosen when that was the state."""
        self.by_device.clear()
        self.by_device.update(state[0])
        self.use(state[1])


CHOSEN = Chosen()
