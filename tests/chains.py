"""Random chains of factors and what they are compared with: products of dense matrices in float64."""

import torch
from hypothesis import strategies as st
from torch import Tensor

__all__ = ["assert_near", "chains", "dense", "drawn"]

TOLERANCE = {
    torch.float32: 1e-5,
    torch.float64: 1e-13,
    torch.bfloat16: 2e-2,
    torch.float16: 3e-3,
    torch.complex64: 1e-5,
    torch.complex128: 1e-13,
}


def divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


@st.composite
def chains(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """Shapes (a, d, b, c) of a chain of one to three factors."""
    size = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 11, 16, 17])
    a, d, c = draw(size), draw(size), draw(st.sampled_from([1, 2, 3, 4, 8, 9]))
    shapes, features = [], a * c * d
    for _ in range(draw(st.integers(1, 3))):
        if shapes:
            d = draw(st.sampled_from(divisors(features)))
            c = draw(st.sampled_from(divisors(features // d)[:6]))
            a = features // d // c
        b = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 9, 17] if a * d < 200 else [1, 2, 3]))
        shapes.append((a, d, b, c))
        features = a * b * d
    return shapes


def dense(factors: list[Tensor]) -> Tensor:
    """The product as an ordinary matrix in double precision, entry by entry from the definition."""
    product = None
    exact = torch.complex128 if factors[0].is_complex() else torch.float64
    for factor in factors:
        a, d, b, c = factor.shape
        matrix = torch.zeros(a, b, d, a, c, d, dtype=exact)
        for k in range(d):
            for j in range(a):
                matrix[j, :, k, j, :, k] = factor[j, k].to(exact)
        flat = matrix.reshape(a * b * d, a * c * d)
        product = flat if product is None else flat @ product
    assert product is not None
    return product


def assert_near(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    assert got.shape == want.shape and got.dtype == dtype
    if want.numel():
        scale = want.abs().max().clamp(min=1e-3)
        assert ((got.to(want.dtype) - want).abs().max() / scale) < TOLERANCE[dtype]


def drawn(dtype: torch.dtype, *shape: int) -> Tensor:
    """Random numbers, those of half precision drawn in single."""
    single = dtype in (torch.bfloat16, torch.float16)
    return torch.randn(shape, dtype=torch.float32 if single else dtype).to(dtype)
