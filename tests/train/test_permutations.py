"""Soft permutations: doubly stochastic while they are learned, exact afterwards."""

import copy

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon.errors import SurgeryError
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import Dense, Kaleidoscope, Monarch
from ksurgeon.train.log import Evaluation
from ksurgeon.train.permutations import (
    SoftPermutation,
    harden,
    mean_entropy,
    relax,
    relaxed,
    set_temperature,
)
from tests.train.conftest import pair


@pytest.mark.parametrize("n", [12, 16])
def test_soft_matrices_are_doubly_stochastic_and_tend_to_permutations(n):
    matrix = relax(KMatrix(n, start="identity"), noise=1.0)
    dense = matrix.to_dense()
    torch.testing.assert_close(dense.sum(0), torch.ones(n), atol=0.1, rtol=0)
    torch.testing.assert_close(dense.sum(1), torch.ones(n), atol=1e-4, rtol=0)
    entropies = []
    for temperature in (1.0, 0.3, 0.05):
        set_temperature(matrix, temperature)
        entropies.append(float(mean_entropy([matrix]).detach()))
    assert entropies == sorted(entropies, reverse=True) and entropies[-1] < 0.3


def test_hardening_finds_the_permutation_that_a_soft_matrix_is_near_to():
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    matrix = relax(KMatrix.from_permutation(order), temperature=0.5)
    assert relaxed(nn.ModuleList([matrix])) == [matrix]
    found = harden(matrix)
    assert found.permutation == tuple(order.tolist()) and found.changed == () and 0 < found.error < 0.5
    x = torch.randn(3, 24)
    assert torch.equal(matrix(x), x[:, order])
    assert next(name for name, _ in matrix.named_parameters()) == "factors.0"
    assert relaxed(nn.ModuleList([matrix])) == []


def test_little_spread_begins_nearly_even_whatever_was_there():
    matrix = relax(KMatrix.from_permutation(torch.randperm(24)), spread=0.01)
    torch.testing.assert_close(matrix.to_dense(), torch.full((24, 24), 1 / 24), atol=0.01, rtol=0)
    assert matrix.to_dense().std() > 0


def test_blocks_of_two_are_what_sinkhorns_rounds_tend_to():
    logits = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    blocks = logits.div(0.5).exp()
    for _ in range(2000):
        blocks = blocks / blocks.sum(-2, keepdim=True)
        blocks = blocks / blocks.sum(-1, keepdim=True)
    torch.testing.assert_close(SoftPermutation(0.5)(logits), blocks)


@pytest.mark.parametrize("structure", [Kaleidoscope(), Dense()])
def test_any_square_matrix_can_be_hardened(structure):
    matrix = KMatrix(8, structure=structure)
    found = harden(matrix)
    assert sorted(found.permutation) == list(range(8))
    assert torch.equal(matrix.to_dense(), torch.eye(8)[list(found.permutation)])


def test_only_square_kaleidoscopes_are_permutations():
    for matrix in (KMatrix(8, 16), KMatrix(16, structure=Monarch(blocks=4))):
        before = copy.deepcopy(matrix.state_dict())
        with pytest.raises(SurgeryError):
            harden(matrix)
        assert all(torch.equal(matrix.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(SurgeryError, match="square"):
        relax(KMatrix(8, 16))
    broken = KMatrix(8)
    with torch.no_grad():
        broken.factors[0].fill_(torch.nan)
    with pytest.raises(SurgeryError, match="NaN"):
        harden(broken)


def test_shuffles_are_soft_while_they_are_trained_and_exact_afterwards(tmp_path, heard, monkeypatch):
    monkeypatch.setattr(Evaluation, "betters", lambda *_: True)  # or the student as it came would be kept
    student, teacher = pair("shufflenet_v1_g4", "permutation")
    data = list(torch.randn(16, 3, 32, 32))
    trained = ksurgeon.distill(
        student, teacher, data, batch=8, steps=3, device="cpu", evaluate=1, listener=heard,
        permutations="soft", temperatures=(0.3, 0.02), weights={"entropy": 0.1},
    )  # fmt: skip
    assert len(trained.hardened) == 4 and heard.steps[0].terms["entropy"] > 0
    assert heard.steps[-1].terms["entropy"] < heard.steps[0].terms["entropy"]
    ksurgeon.save(student, tmp_path / "hard")
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(ksurgeon.load(tmp_path / "hard", trust_remote_code=True)(x), student(x))
