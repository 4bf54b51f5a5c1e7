"""The definition of a Kronecker-sparse factor, written out with Kronecker products."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor


def factor_matrix(factor: Tensor) -> Tensor:
    """Dense matrix of a factor ``(a, d, b, c)``: the sum of e_a e_aᵀ ⊗ w[a, d] ⊗ e_d e_dᵀ."""
    a, d, b, c = factor.shape
    dense = factor.new_zeros(a * b * d, a * c * d)
    for i in range(a):
        for j in range(d):
            left, right = torch.zeros(a, a), torch.zeros(d, d)
            left[i, i] = right[j, j] = 1
            dense += torch.kron(torch.kron(left.to(factor), factor[i, j]), right.to(factor))
    return dense


def chain_matrix(factors: Sequence[Tensor]) -> Tensor:
    """Dense matrix of a chain whose factors are listed in the order they are applied."""
    dense = factor_matrix(factors[0].detach())
    for factor in factors[1:]:
        dense = factor_matrix(factor.detach()) @ dense
    return dense


@pytest.fixture(scope="session")
def kronecker() -> Callable[[Sequence[Tensor]], Tensor]:
    return chain_matrix


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
