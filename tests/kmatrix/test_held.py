"""Factors count by their index, and hooks of their list run, whoever registered what."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from ksurgeon.kernels import reference
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.shuffle import KChannelShuffle
from ksurgeon.kmatrix.transform import KTransform


def by_index(factors: nn.ParameterList, x: Tensor) -> Tensor:
    """The product of the factors as the list gives them."""
    return reference.apply_chain(x, [factors[k] for k in range(len(factors))], -1)


def pruned(factors: nn.ParameterList) -> None:
    for k in range(len(factors)):
        prune.l1_unstructured(factors, str(k), amount=0.3)


def pruned_for_good(factors: nn.ParameterList) -> None:
    prune.random_unstructured(factors, "1", amount=0.5)
    prune.remove(factors, "1")


def weight_norm(factors: nn.ParameterList) -> None:
    with warnings.catch_warnings(action="ignore"):
        nn.utils.weight_norm(factors, "0", dim=None)


def spectral_norm(factors: nn.ParameterList) -> None:
    nn.utils.spectral_norm(factors, "2", dim=0)


def registered_again(factors: nn.ParameterList) -> None:
    for name in ("0", "2"):
        value = getattr(factors, name)
        delattr(factors, name)
        factors.register_parameter(name, nn.Parameter(value.detach() * 2))


def parametrised(factors: nn.ParameterList) -> None:
    parametrizations.weight_norm(factors, "1", dim=None)


EDITS = [pruned, pruned_for_good, weight_norm, spectral_norm, registered_again, parametrised]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_factors_go_by_their_index(edit: Callable[[nn.ParameterList], None]) -> None:
    torch.manual_seed(0)
    layer, x = KLinear(64, 64, bias=False), torch.randn(3, 64)
    with torch.no_grad():
        layer(x)
    edit(layer.matrix.factors)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            y = layer(x)
            torch.testing.assert_close(y, by_index(layer.matrix.factors, x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        y = layer(x)
        torch.testing.assert_close(y, by_index(layer.matrix.factors, x), rtol=1e-4, atol=1e-5)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ layer.weight.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("edit", [*EDITS[:1], *EDITS[2:]], ids=lambda edit: edit.__name__)
def test_reparametrised_factors_are_trained(edit: Callable[[nn.ParameterList], None]) -> None:
    torch.manual_seed(0)
    layer, x = KLinear(64, 64, bias=False), torch.randn(8, 64)
    edit(layer.matrix.factors)
    before = copy.deepcopy(layer.state_dict())
    optimiser = torch.optim.SGD(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = layer(x).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]
    assert all(not torch.equal(before[name], p) for name, p in layer.named_parameters())
    if edit is pruned:
        for k in range(len(layer.matrix.factors)):
            assert (layer.matrix.factors[k] == 0).float().mean() >= 0.29


def test_hooks_run_before_a_matrix_is_transposed_or_merged() -> None:
    torch.manual_seed(0)
    matrix, x = KLinear(16, 16, bias=False).matrix, torch.randn(2, 16)
    prune.l1_unstructured(matrix.factors, "0", amount=0.5)
    with torch.no_grad():
        getattr(matrix.factors, "0_orig").mul_(3)
        dense = matrix.to_dense()
        torch.testing.assert_close(matrix.transposed(x), x @ dense, rtol=1e-4, atol=1e-5)
        getattr(matrix.factors, "0_orig").mul_(3)
        merged = reference.apply_chain(x, matrix.merged(), -1)
        torch.testing.assert_close(merged, 3 * x @ dense.T, rtol=1e-4, atol=1e-4)


def test_hooks_run_in_shuffles_and_transforms() -> None:
    for layer in (KChannelShuffle(16, 4, dim=-1), KTransform("dct", 16)):
        x = torch.randn(2, 16)
        factors = layer.matrix.factors if isinstance(layer, KChannelShuffle) else layer.factors
        prune.l1_unstructured(factors, "0", amount=1)
        for module in layer.modules():
            if hasattr(module, "0_orig"):
                with torch.no_grad():
                    getattr(module, "0_orig").zero_()
        with torch.no_grad():
            assert not layer(x).any()


def test_a_hook_with_keywords_gets_them() -> None:
    layer, seen = KLinear(16, 16), []
    layer.matrix.factors.register_forward_pre_hook(
        lambda module, inputs, keywords: seen.append((inputs, keywords)), with_kwargs=True
    )
    layer(torch.randn(1, 16))
    assert seen == [((), {})]
