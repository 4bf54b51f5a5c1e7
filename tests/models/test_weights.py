"""Weights from a safetensors file."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ksurgeon.errors import WeightsError
from ksurgeon.models.weights import load_weights, seeded


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.head.weight = self.body.weight


def tensors(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_all_tensors_are_loaded_and_dtypes_kept(tmp_path):
    save_file(tensors(nn.Linear(3, 2, dtype=torch.float64)), tmp_path / "w.safetensors")
    model = nn.Linear(3, 2)
    load_weights(model, tmp_path / "w.safetensors")
    assert model.weight.dtype == torch.float32
    other = nn.Linear(3, 2, dtype=torch.float64)
    load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(other.weight.float(), model.weight) and torch.equal(other.bias.float(), model.bias)


def test_of_tied_tensors_one_suffices(tmp_path):
    saved = tensors(Tied())
    del saved["head.weight"]
    save_file(saved, tmp_path / "w.safetensors")
    model = Tied()
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model.head.weight, saved["body.weight"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("bias"), "1 missing tensors (bias)"),
        (lambda t: t.update(extra=torch.ones(1)), "1 unexpected tensors (extra)"),
        (lambda t: t.update(bias=torch.ones(5)), "1 wrong shapes (bias is [5], expected [2])"),
        (lambda t: t.update({f"x{i}": torch.ones(1) for i in range(5)}), "(x0, x1, x2 and 2 more)"),
        (lambda t: t["bias"].fill_(float("nan")), "NaN or infinite (bias)"),
    ],
)
def test_tensors_that_do_not_fit_change_nothing(tmp_path, change, expected):
    model = nn.Linear(3, 2)
    before, changed = tensors(model), tensors(nn.Linear(3, 2))
    change(changed)
    save_file(changed, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_weights(model, tmp_path / "w.safetensors")
    assert expected in str(caught.value) and "w.safetensors" in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("cut", "expected"), [(None, "no such file"), (0, "not a whole safetensors file"), (90, "not a whole")]
)
def test_missing_and_damaged_files(tmp_path, cut, expected):
    file = tmp_path / "w.safetensors"
    if cut is not None:
        save_file(tensors(nn.Linear(3, 2)), file)
        file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(WeightsError, match=expected):
        load_weights(nn.Linear(3, 2), file)


def test_seeded_numbers_leave_the_others_alone():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with seeded(1):
        first = torch.rand(2)
    with seeded(1):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.rand(2), expected)
