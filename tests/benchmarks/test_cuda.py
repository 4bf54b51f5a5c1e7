"""The benchmark of a GPU, with the CPU in its place: what is compared, and that it can be drawn."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import cuda, cuda_models, report, results


def called(call: Callable[[Tensor], object], inputs: Sequence[Tensor]) -> dict[str, float]:
    assert call(inputs[0]) is not None
    return results.summary([2.0, 3.0, 4.0])


def test_layers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "captured", called)
    monkeypatch.setattr(cuda, "eager", called)
    monkeypatch.setattr(cuda, "peak", lambda dtype: 1e3)
    row, eager = cuda.forward((64, 64), 5, torch.float32, False, 10)
    assert list(row["us"])[:3] == ["KLinear", "nn.Linear", "batched Monarch"] and not row["wanted"]
    assert list(eager["us"]) == ["KLinear", "nn.Linear"]
    assert row["moved"] == 5 * 128 * 4 and row["flop"] == 2 * 5 * 64 * 64
    trained = cuda.training((64, 64), 5, torch.float32, 10)
    assert trained["us"].keys() >= {"KLinear", "nn.Linear"}
    file = tmp_path / "gpu.json"
    results.add(file, cuda.TITLE, {"machine": "a GPU"}, [row, eager, trained])
    page = report.render("<!-- results gpu.json -->\n<!-- end -->\n", tmp_path, tmp_path)
    assert "| linear, eager | rows |" in page and "roofline-gpu.svg" in page
    assert (tmp_path / "roofline-gpu.svg").stat().st_size > 1000


def test_what_is_asked_for() -> None:
    names = ["KLinear", "nn.Linear", "batched Monarch", results.COPY, results.PEAK]
    asked = cuda.wanted((4096, 4096), 4096, torch.bfloat16, names)
    assert asked == {results.COPY: 1 / 1.5, "nn.Linear": 4, "batched Monarch": 2}
    assert cuda.wanted((4096, 4096), 1, torch.float32, names)["nn.Linear"] == 2
    assert "batched Monarch" not in cuda.wanted((768, 3072), 64, torch.float32, names)


def test_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_models, "DEVICE", "cpu")
    monkeypatch.setattr(
        cuda_models, "eager", lambda call, inputs: (call(*inputs), results.summary([1.0, 2.0]))[1]
    )
    shape = cuda_models.Shape(32, 2, 1, 2, 3, True, "tokens")
    forward, training = cuda_models.rates("tiny", shape, False)
    assert forward["part"] == "whole model, forward" and training["part"] == "whole model, training"
    assert list(forward["us"]) == ["KLinear", "nn.Linear"] and forward["rows"] == 6
