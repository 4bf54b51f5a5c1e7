"""What the ``cuda`` backend declares."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ksurgeon.kernels import cuda
from ksurgeon.kernels.backend import Backend

__all__ = ["CudaBackend"]


class CudaBackend(Backend):
    """The Triton kernels."""

    name, device_types = "cuda", ("cuda",)

    apply_chain = staticmethod(cuda.apply_chain)  # type: ignore[assignment]

    def why_missing(self, device: torch.device | None = None) -> str:
        if device is not None:
            return cuda.why_not(cuda.index_of(device)) or ""
        reasons = [cuda.why_not(index) for index in range(torch.cuda.device_count())]
        return "" if None in reasons else next(filter(None, reasons), "there is no GPU")

    def about(self, device: torch.device) -> str:
        missing = self.why_missing(device)
        if missing:
            return missing
        choices = _choices(cuda.index_of(device))
        return (
            f"each kind of product is checked and measured at its first use; {len(choices['measured'])} "
            f"measured so far, kept in {choices['cache']}"
        )

    def rows(self) -> Sequence[tuple[str, str, str]]:
        return ()  # it is told beside each GPU

    def facts(self) -> Mapping[str, object]:
        return {"choices_on_gpus": [_choices(index) for index in range(torch.cuda.device_count())]}


def _choices(index: int) -> dict[str, Any]:
    """What was chosen on a GPU, by kind of product, and where that is kept."""
    if cuda.why_not(index) is not None:
        return {"cache": None, "measured": {}}
    from ksurgeon.kernels.cuda.trial import cache_of

    cache = cache_of(index)
    return {"cache": str(cache.path), "measured": cache.all()}
