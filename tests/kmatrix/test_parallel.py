"""Stacks of matrices, decomposed on several threads."""

from collections.abc import Iterator

import pytest
import torch

from ksurgeon.kmatrix import parallel
from ksurgeon.kmatrix.parallel import in_parts
from ksurgeon.kmatrix.subspace import leading

_LARGE = 2**40


@pytest.fixture
def threads() -> Iterator[int]:
    """Three threads, and as many as before in the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def test_large_stacks_are_split_over_threads_of_one_each(threads: int) -> None:
    stack, seen = torch.arange(7.0).view(7, 1, 1), list[tuple[int, int]]()

    def double(part: torch.Tensor) -> torch.Tensor:
        seen.append((len(part), torch.get_num_threads()))
        assert not torch.is_grad_enabled()
        return 2 * part

    torch.testing.assert_close(in_parts(double, stack, _LARGE), 2 * stack, rtol=0, atol=0)
    assert sorted(seen) == [(2, 1), (2, 1), (3, 1)]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("count", "multiplications"), [(7, 10), (1, _LARGE)])
def test_small_stacks_stay_on_their_thread(threads: int, count: int, multiplications: int) -> None:
    seen = []

    def same(part: torch.Tensor) -> torch.Tensor:
        seen.append((len(part), torch.get_num_threads()))
        return part

    in_parts(same, torch.zeros(count, 1, 1), multiplications)
    assert seen == [(count, threads)]


def test_a_failure_leaves_the_number_of_threads(threads: int) -> None:
    def fail(part: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError(f"{len(part)} matrices")

    with pytest.raises(ArithmeticError, match="matrices"):
        in_parts(fail, torch.zeros(6, 2, 2), _LARGE)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(5, 12, 9), (5, 9, 12)])
def test_subspaces_depend_on_threads_by_rounding_alone(
    threads: int, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    random = torch.Generator().manual_seed(0)
    blocks = torch.randn(shape, dtype=dtype, generator=random)
    blocks[2] = 0
    values = torch.linalg.svdvals(blocks)
    alone = leading(blocks, 4)
    monkeypatch.setattr(parallel, "_LEAST", 0)
    spread = leading(blocks, 4)
    # Single precision tells squares of singular values apart to its rounding, relative to the first.
    gap = ((values[:, 3] - values[:, 4]) / values[:, 0]).where(values[:, 0] > 0, 1)
    angle = torch.linalg.matrix_norm(spread @ spread.mH - alone @ alone.mH, 2)
    assert (angle * gap < 32 * torch.finfo(torch.float32).eps).all()
    # What is kept depends on the square of that.
    kept = [torch.linalg.vector_norm(blocks @ basis, dim=(-2, -1)).square() for basis in (spread, alone)]
    torch.testing.assert_close(kept[0], kept[1], rtol=1e-10, atol=0)
    torch.testing.assert_close(kept[0], values[:, :4].square().sum(-1), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_bases_of_matrices_of_that_rank_are_double_precision(
    threads: int, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    random = torch.Generator().manual_seed(0)
    blocks = torch.randn(5, 12, 4, dtype=dtype, generator=random)
    blocks = blocks @ torch.randn(5, 4, 9, dtype=dtype, generator=random)
    alone = leading(blocks, 4)
    monkeypatch.setattr(parallel, "_LEAST", 0)
    spread = leading(blocks, 4)
    torch.testing.assert_close(spread @ spread.mH, alone @ alone.mH, rtol=0, atol=1e-10)
