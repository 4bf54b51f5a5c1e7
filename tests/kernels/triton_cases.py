"""What the tests of the Triton kernels share: on a GPU if there is one, else in Triton's interpreter."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch
from torch import Tensor

from ksurgeon.kernels import cuda, reference
from ksurgeon.kernels.chosen import CHOSEN
from ksurgeon.patterns.pattern import Pattern

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# Triton's interpreter cuts off where a GPU rounds: one bit less.
TOLERANCE = {
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.bfloat16: 1e-2 if GPU else 2e-2,
    torch.float16: 1e-3 if GPU else 2e-3,
}


@contextmanager
def triton_kernels() -> Iterator[ModuleType]:
    """``ksurgeon.kernels.cuda.run``, interpreted if there is no GPU."""
    with pytest.MonkeyPatch.context() as patch:
        if not GPU:
            patch.setenv("TRITON_INTERPRET", "1")  # read once, when the kernels are imported
        else:
            patch.setenv("KSURGEON_BACKEND", "cuda")
            CHOSEN.clear()
        cuda._runs_on.cache_clear()
        from ksurgeon.kernels.cuda import run

        yield run
    cuda._runs_on.cache_clear()


def factors_of(shapes: list[tuple[int, ...]], dtype: torch.dtype, device: str = DEVICE) -> list[Tensor]:
    """Shapes are those of patterns (a, b, c, d)."""
    return [
        (torch.randn(Pattern(*shape).shape, dtype=dtype) / shape[2] ** 0.5).to(device).requires_grad_()
        for shape in shapes
    ]


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.detach().cpu().to(exact.dtype) - exact).norm() / exact.norm())


def exact_of(
    x: Tensor, factors: list[Tensor], dim: int, bias: Tensor | None, g: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Result and gradients in float64 or complex128 on the CPU."""
    wide = torch.promote_types(x.dtype, torch.float64)
    doubles = [t.detach().cpu().to(wide).requires_grad_() for t in (x, *factors)]
    y = reference.apply_chain(doubles[0], doubles[1:], dim, None if bias is None else bias.cpu().to(wide))
    return y.detach(), list(torch.autograd.grad(y, doubles, g.cpu().to(wide)))


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside, memory comes full of NaN."""
    if GPU:
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)
        return
    empty = torch.empty

    def poisoned(*args: object, **options: object) -> Tensor:
        made = empty(*args, **options)
        return made.fill_(float("nan")) if made.is_floating_point() or made.is_complex() else made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        yield
