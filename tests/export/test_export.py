"""Programs that run without ksurgeon and give what the model gives."""

import subprocess
import sys

import onnx
import pytest
import torch
import torchvision
from torch import nn
from transformers import BertConfig, BertModel, WhisperFeatureExtractor

import ksurgeon
from ksurgeon import ExportError, FolderError, Rule
from ksurgeon.export import program
from ksurgeon.export.plain import plain
from tests import zoo

POINTWISE = Rule(
    name="quick",
    replace=[
        {
            "find": "pointwise_conv",
            "targets": ["re:layer4.*conv."],
            "with": {"structure": "kaleidoscope"},
            "start": "orthogonal",
        }
    ],
)


def shufflenet():
    model = torchvision.models.shufflenet_v2_x1_0(num_classes=10).eval()
    return ksurgeon.replace_modules(model, "shuffle", torch.randn(1, 3, 32, 32)), torch.randn(1, 3, 32, 32)


def resnet():
    model = torchvision.models.resnet50(num_classes=10).eval()
    return ksurgeon.replace_modules(model, POINTWISE, torch.randn(1, 3, 32, 32)), torch.randn(1, 3, 32, 32)


def bert():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 96}
    model = BertModel(BertConfig(num_attention_heads=4, **sizes)).eval()
    ids = {"input_ids": torch.arange(10, 26)[None], "attention_mask": torch.ones(1, 16, dtype=torch.long)}
    return ksurgeon.replace_modules(model, "linear", ids), ids


@pytest.mark.parametrize(
    "make, opened", [(shufflenet, "batch"), (resnet, "batch"), (bert, "batch and length")]
)
def test_onnx(tmp_path, make, opened):
    torch.manual_seed(0)
    model, inputs = make()
    exported = ksurgeon.export_model(model, tmp_path / "model.onnx", inputs)
    assert exported.opened == opened and exported.largest_error <= 1e-4
    graph = onnx.load(exported.file)
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"} and not graph.functions
    if make is bert:
        longer = {name: value.repeat(3, 2)[:, :21] for name, value in inputs.items()}
        with torch.no_grad():
            expected = model(**longer)[0]
        torch.testing.assert_close(exported.run(longer)[0], expected, atol=1e-4, rtol=1e-4)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def mlp():
    return ksurgeon.replace_modules(zoo.mlp(), "linear", zoo.example("mlp")), zoo.example("mlp")


def test_torch_export_needs_no_ksurgeon(tmp_path):
    model, x = mlp()
    exported = ksurgeon.export_model(model, tmp_path / "model.pt2", x)
    assert exported.to == "pt2" and exported.opened == "batch"
    script = (
        "import sys, torch; sys.modules['ksurgeon'] = None\n"
        "x, y = torch.load(sys.argv[2])\n"
        "torch.testing.assert_close(torch.export.load(sys.argv[1]).module()(x), y)"
    )
    x = torch.cat([x, x, x])
    torch.save((x, model(x).detach()), tmp_path / "pair.pt")
    subprocess.run([sys.executable, "-c", script, exported.file, tmp_path / "pair.pt"], check=True)


def test_aoti(tmp_path):
    model, x = mlp()
    exported = ksurgeon.export_model(model, tmp_path / "model.pt2", x, to="aoti")
    torch.testing.assert_close(exported.run(torch.cat([x, x]))[0], model(torch.cat([x, x])).detach())


def test_the_model_is_left_as_it_is():
    model, x = mlp()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(x)
    with plain(model):
        merged = model.state_dict()
        torch.testing.assert_close(model(x), expected)
    assert len(merged) < len(before)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_a_program_that_gives_something_else_is_not_written(tmp_path, monkeypatch):
    (tmp_path / "model.pt2").write_text("earlier")
    monkeypatch.setattr(program, "TOLERANCE", -1.0)
    model, x = mlp()
    with pytest.raises(ExportError, match="differ"):
        ksurgeon.export_model(model, tmp_path / "model.pt2", x)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_text() == "earlier"


class Branches(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize("file, options, error, message", [
    ("model.bin", {}, ExportError, "onnx, pt2, aoti"),
    ("model.onnx", {"to": "tflite"}, ExportError, "tflite"),
    ("model.onnx", {"to": "pt2"}, FolderError, r"\.pt2"),
    ("", {"to": "pt2"}, FolderError, "a file"),
])  # fmt: skip
def test_bad_targets(tmp_path, file, options, error, message):
    with pytest.raises(error, match=message):
        ksurgeon.export_model(nn.Linear(2, 2), tmp_path / file, torch.ones(1, 2), **options)


def test_code_that_cannot_be_exported(tmp_path):
    with pytest.raises(ExportError, match="Branches cannot be exported to pt2"):
        ksurgeon.export_model(Branches(), tmp_path / "model.pt2", torch.ones(1, 2))
    assert list(tmp_path.iterdir()) == []


class OnlyTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        if x.shape[0] != 2:
            raise ValueError("batches of two")
        return self.inner(x)


def test_what_one_attempt_asked_for_is_not_asked_of_the_next(tmp_path):
    x = torch.ones(2, 3)
    exported = ksurgeon.export_model(OnlyTwo(), tmp_path / "model.onnx", x)
    (given,) = onnx.load(exported.file).graph.input
    assert exported.opened == "nothing"
    assert [size.dim_value for size in given.type.tensor_type.shape.dim] == [2, 3]
    assert not any(name.startswith("_dynamo") for name in vars(x))


def test_the_batch_of_a_front_end_is_open(tmp_path):
    front = ksurgeon.KFrontend.from_feature_extractor(WhisperFeatureExtractor(chunk_length=1))
    exported = ksurgeon.export_model(front, tmp_path / "front.pt2", torch.randn(2, 16000))
    assert exported.opened == "batch" and exported.run(torch.randn(5, 16000))[0].shape == (5, 80, 100)
