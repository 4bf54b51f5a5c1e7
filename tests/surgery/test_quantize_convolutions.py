"""Pointwise convolutions in int8, K-layers and dense ones."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ksurgeon
from ksurgeon import KPointwiseConv
from ksurgeon.kmatrix.int8 import Int8Matrix
from ksurgeon.surgery.record import record_of
from ksurgeon.surgery.sizes import count_bytes
from tests.surgery.test_quantize import relative

RULE = ksurgeon.Rule.model_validate(
    {
        "name": "half",
        "replace": [
            {
                "find": "pointwise_conv",
                "targets": ["3"],
                "with": {"structure": "low_rank", "share": 0.5},
                "start": "fit",
            }
        ],
    }
)


def network() -> nn.Sequential:
    layers = (
        nn.Conv2d(3, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.Conv2d(24, 40, 1, stride=2),
        nn.Conv2d(40, 48, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(48, 48, 3, groups=48),
        nn.Conv2d(48, 32, 1, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return nn.Sequential(*layers).eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 17, 21)


def test_all_but_larger_and_depthwise_ones() -> None:
    model, x = network(), images()
    ksurgeon.convert(model, RULE, x)
    with torch.no_grad():
        before, size = model(x), count_bytes(model)
        errors = ksurgeon.quantize(model)
        assert list(errors) == ["2", "3", "6", "9"]
        assert all(0 < error < 0.03 for error in errors.values())
        assert relative(model(x), before) < 0.05
    layers = [model[k] for k in (2, 3, 6)]
    assert all(type(layer) is KPointwiseConv and isinstance(layer.matrix, Int8Matrix) for layer in layers)
    assert [type(model[k]) for k in (0, 5)] == [nn.Conv2d] * 2
    assert count_bytes(model) < 0.6 * size
    record = record_of(model)
    assert record is not None and record.outcome is not None
    assert record.outcome.parts[-1] == "4 layers in int8"
    assert all(operation.int8 for operation in record.operations)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv2d(24, 40, 1), (2, 24, 9, 7)),
        (nn.Conv2d(24, 40, 1, stride=2, bias=False), (2, 24, 9, 7)),
        (nn.Conv2d(24, 40, 1, groups=4), (2, 24, 2, 3)),
        (nn.Conv1d(24, 40, 1, stride=3), (2, 24, 40)),
        (nn.Conv3d(24, 40, 1), (2, 24, 3, 4, 5)),
        (nn.ConvTranspose2d(24, 40, 1), (2, 24, 9, 7)),
        (nn.Conv2d(24, 40, 1), (24, 9, 7)),
    ],
    ids=str,
)
def test_errors_are_those_of_rounding(
    layer: nn.Module, size: tuple[int, ...], last: bool, dtype: torch.dtype
) -> None:
    """Half a step of each weight and of each input, beside what the dtype rounds."""
    x = torch.randn(size)
    if last and len(size) in (4, 5):
        x = x.to(memory_format=torch.channels_last if len(size) == 4 else torch.channels_last_3d)
    x = x.to(dtype)
    model = nn.Sequential(copy.deepcopy(layer).to(dtype))
    exact = copy.deepcopy(model[0]).double()
    with torch.no_grad():
        want = exact(x.double())
        ksurgeon.quantize(model)
        got = model(x)
        assert got.dtype is dtype
        assert got.shape == want.shape
        assert got.is_contiguous() or last
        inputs, largest = 24 // layer.groups, float(exact.weight.abs().max())
        bound = inputs * largest * float(x.abs().max()) * 1.01 / 127
        bound += (8e-3 if dtype is torch.bfloat16 else 1e-6) * float(want.abs().max())
        assert float((got.double() - want).abs().max()) <= bound
        assert relative(got.double(), want) < 0.03


def test_a_position_that_is_not_finite_gives_nan_there_alone() -> None:
    model, x = nn.Sequential(nn.Conv2d(24, 40, 1)), torch.randn(2, 24, 9, 7)
    ksurgeon.quantize(model)
    for last in (False, True):
        with torch.no_grad():
            given = x.clone(memory_format=torch.channels_last if last else torch.contiguous_format)
            want = model(given)
            given[0, 3, 2, 1], given[1, 0, 8, 6] = torch.nan, -torch.inf
            got = model(given)
            assert bool(got[0, :, 2, 1].isnan().all()) and bool(got[1, :, 8, 6].isnan().all())
            rest = got.isfinite().all(1)
            assert int(rest.sum()) == 2 * 63 - 2
            assert torch.equal(got.movedim(1, -1)[rest], want.movedim(1, -1)[rest])


def test_saved_loaded_folded_and_reverted(tmp_path: Path) -> None:
    model, x = network(), images()
    ksurgeon.convert(model, RULE, x, fold=True, weights="int8")
    with torch.no_grad():
        want = model(x)
        ksurgeon.save(model, tmp_path / "saved")
        loaded = ksurgeon.load(tmp_path / "saved", network())
        assert torch.equal(loaded(x), want)
        assert isinstance(loaded[3].matrix, Int8Matrix)
        ksurgeon.revert(loaded)
        assert [type(layer) for layer in loaded] == [type(layer) for layer in network()]
        assert loaded[2].stride == (2, 2) and loaded[6].groups == 4
        assert relative(loaded(x), want) < 0.05


def test_compiled_with_gradients_and_in_channels_last() -> None:
    model, x = network(), images()
    ksurgeon.quantize(model)
    for last in (False, True):
        if last:
            model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x), atol=1e-4, rtol=1e-4)
    x.requires_grad_()
    model(x).square().sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())
