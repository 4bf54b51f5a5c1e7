"""Learnable permutations: soft while they are trained, exact when they are hardened."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ksurgeon.errors import SurgeryError
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.permutation import permutation_
from ksurgeon.kmatrix.rotations import Rotations, refuse_to_write
from ksurgeon.kmatrix.structures import Dense, Kaleidoscope

__all__ = ["Hardened", "SoftPermutation", "harden", "mean_entropy", "relax", "relaxed", "set_temperature"]

_ROUNDS = 12
_SHARP = 2.0  # scores of the ones and zeros of a permutation that becomes soft, and their negative
_TINY = 1e-9


class SoftPermutation(nn.Module):
    """Parametrisation of a factor whose blocks are doubly stochastic: Sinkhorn's of ``exp(logits / τ)``.

    With the temperature τ towards 0 they tend to permutations (Mena et al., ICLR 2018; in a K-matrix every
    permutation is such a product: Dao et al., ICLR 2020).
    """

    temperature: Tensor

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, logits: Tensor) -> Tensor:
        """Logits ``(a, d, b, b)`` to doubly stochastic blocks of the same shape."""
        scores = logits / self.temperature
        if scores.shape[-1] == 2:  # the limit in closed form
            share = torch.sigmoid((scores * scores.new_tensor([[1, -1], [-1, 1]])).sum((-2, -1)) / 2)
            return torch.stack([share, 1 - share, 1 - share, share], -1).unflatten(-1, (2, 2))
        for _ in range(_ROUNDS):
            scores = scores - scores.logsumexp(-2, keepdim=True)
            scores = scores - scores.logsumexp(-1, keepdim=True)
        return scores.exp()

    def right_inverse(self, factor: Tensor) -> Tensor:
        """Logits that give nearly this factor, if its blocks are permutations."""
        return (factor * 2 - 1) * (_SHARP * self.temperature)


@dataclass(frozen=True)
class Hardened:
    """What became of one soft permutation.

    Attributes:
        permutation: ``y[i] = x[permutation[i]]``.
        error: relative Frobenius distance of the soft matrix from it.
        least_share: smallest entry of the soft matrix that became 1; 1 where nothing changed.
        changed: rows whose largest entry is not the one that became 1.
    """

    permutation: tuple[int, ...]
    error: float
    least_share: float
    changed: tuple[int, ...]


def relax(
    matrix: KMatrix, noise: float = 0.0, temperature: float = 1.0, spread: float | None = None
) -> KMatrix:
    """Make a square K-matrix a soft permutation in place, starting near what it is; trained like any other.

    Args:
        noise: standard deviation of what is added to the logits; with a matrix of identity blocks this
            decides where it starts.
        spread: standard deviation of random logits, in place of those that are near what it is: with little
            of it every entry starts nearly as large.

    Raises:
        SurgeryError: a matrix that is not square, or whose blocks are not.
        StructureError: its factors are computed.
    """
    square = matrix.side is None and all(pattern.b == pattern.c for pattern in matrix.patterns)
    if matrix.in_features != matrix.out_features or not square or matrix.groups != 1:
        raise SurgeryError(
            f"only a square K-matrix without groups can be a permutation, this one maps {matrix.in_features} "
            f"→ {matrix.out_features}"
        )
    if isinstance(matrix.factors, Rotations):
        refuse_to_write("a soft permutation")
    for number in range(len(matrix.factors)):
        parametrize.register_parametrization(
            matrix.factors, str(number), SoftPermutation(temperature).to(matrix.factors[number].device)
        )
        logits = matrix.factors.parametrizations[str(number)].original  # type: ignore[index, union-attr]
        with torch.no_grad():
            if spread is not None:
                logits.normal_(0, spread)
            if noise:
                logits.add_(torch.randn_like(logits), alpha=noise)
    return matrix


def relaxed(model: nn.Module) -> list[KMatrix]:
    """K-matrices in a model that are soft permutations."""
    return [
        module
        for module in model.modules()
        if isinstance(module, KMatrix)
        and parametrize.is_parametrized(module.factors)
        and any(isinstance(part, SoftPermutation) for part in module.factors.modules())
    ]


def set_temperature(model: nn.Module, temperature: float) -> None:
    """Give all soft permutations of a model a temperature."""
    for module in model.modules():
        if isinstance(module, SoftPermutation):
            module.temperature.fill_(temperature)


def mean_entropy(matrices: Sequence[KMatrix]) -> Tensor:
    """Mean entropy of the rows of the matrices' blocks, in nats; 0 for permutations."""
    entropies = [
        -(factor * (factor + _TINY).log()).sum(-1).mean() for matrix in matrices for factor in matrix.factors
    ]
    return torch.stack(entropies).mean()


@torch.no_grad()
def harden(matrix: KMatrix) -> Hardened:
    """Make a matrix the permutation nearest to it, exactly and in place; it then runs as an index copy.

    The assignment of largest total weight is chosen (Jonker and Volgenant's algorithm in SciPy).

    Raises:
        SurgeryError: the matrix is not square, is neither ``Kaleidoscope`` nor ``Dense``, or is not finite;
            it is as it was.
    """
    from scipy.optimize import linear_sum_assignment

    if matrix.in_features != matrix.out_features or matrix.groups != 1:
        raise SurgeryError(
            f"a permutation is square, this matrix maps {matrix.in_features} → {matrix.out_features}"
        )
    if not isinstance(matrix.structure, (Kaleidoscope, Dense)):
        raise SurgeryError(f"every permutation fits a Kaleidoscope or a dense matrix, not {matrix.structure}")
    soft = matrix.to_dense()
    soft = soft.real if soft.is_complex() else soft
    if not bool(soft.isfinite().all()):
        raise SurgeryError("the matrix holds NaN or infinite entries")
    rows, columns = linear_sum_assignment(soft.double().cpu().numpy(), maximize=True)
    chosen = torch.as_tensor(columns)
    if parametrize.is_parametrized(matrix.factors):
        for number in range(len(matrix.factors)):
            parametrize.remove_parametrizations(matrix.factors, str(number))
    permutation_(matrix, chosen)
    exact = torch.eye(len(chosen), dtype=soft.dtype)[chosen]
    soft = soft.cpu()
    largest = soft.argmax(1)
    return Hardened(
        permutation=tuple(chosen.tolist()),
        error=float((soft - exact).norm() / exact.norm()),
        least_share=float(soft[torch.as_tensor(rows), chosen].min()),
        changed=tuple((largest != chosen).nonzero().flatten().tolist()),
    )
