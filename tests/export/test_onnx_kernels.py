"""ONNX programs whose K-layers are operators of the compiled library."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

import ksurgeon
from ksurgeon import ExportError, KChannelShuffle, KLinear, KPointwiseConv
from ksurgeon.kernels import cpu
from ksurgeon.kmatrix.structures import Dense, LowRank, Monarch, Sum

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled")


def network():
    """K-layers of several structures, padded and with parts, and a dense layer between them."""
    torch.manual_seed(0)
    return nn.Sequential(
        KLinear(48, 96),
        nn.GELU(),
        KLinear(96, 96, structure=Sum(Monarch(blocks=4, block_rank=2), rank=6)),
        KLinear(96, 37, bias=False, radix=2),
        nn.Linear(37, 60),
        KLinear(60, 36, parts=3, structure=LowRank(rank=5)),
    ).eval()


def nodes(file):
    return [node.op_type for node in onnx.load(file).graph.node if node.domain == "ksurgeon"]


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_what_the_model_gives(tmp_path, int8):
    model, x = network(), torch.randn(2, 7, 48)
    if int8:
        assert len(ksurgeon.quantize(model)) == 5
    exported = ksurgeon.export_model(model, tmp_path / "model.onnx", x, kernels=True)
    assert exported.opened == "batch"
    with torch.no_grad():
        for rows in (1, 2, 40):
            x = torch.randn(rows, 7, 48)
            got, want = exported.run(x)[0], model(x)
            assert float((got - want).norm() / want.norm()) < (0.03 if int8 else 1e-5)
    # A chain and a low rank are one node in int8, and two in float32.
    assert set(nodes(exported.file)) == {"Int8Chain" if int8 else "Chain"}
    plain = ksurgeon.export_model(model, tmp_path / "plain.onnx", x)
    assert not nodes(plain.file)
    with torch.no_grad():
        want = model(x)
        assert float((plain.run(x)[0] - want).norm() / want.norm()) < (0.05 if int8 else 1e-5)


def images():
    """K-matrices along channels: groups, a stride, padding, a path beside the chain, a shuffle; signals."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        KPointwiseConv(16, 24, groups=2),
        nn.ReLU(),
        KChannelShuffle(24, 4),
        KPointwiseConv(24, 20, stride=2, bias=False, structure=Sum(Monarch(blocks=4, block_rank=2), rank=3)),
        nn.Flatten(2),
        KPointwiseConv(20, 7, dims=1),
    ).eval()


def test_convolutions(tmp_path):
    model, x = images(), torch.randn(2, 3, 12, 10)
    exported = ksurgeon.export_model(model, tmp_path / "model.onnx", x, kernels=True)
    assert exported.opened == "batch" and set(nodes(exported.file)) == {"Columns"}
    with torch.no_grad():
        for batch in (1, 5):
            x = torch.randn(batch, 3, 12, 10)
            torch.testing.assert_close(exported.run(x)[0], model(x), atol=1e-5, rtol=1e-4)


def test_convolutions_in_int8(tmp_path):
    model, x = images(), torch.randn(2, 3, 12, 10)
    assert list(ksurgeon.quantize(model)) == ["1", "4", "6"]
    exported = ksurgeon.export_model(model, tmp_path / "model.onnx", x, kernels=True)
    assert sorted(nodes(exported.file)) == ["Columns", *["Int8Chain"] * 3]
    with torch.no_grad():
        for batch in (1, 5):
            x = torch.randn(batch, 3, 12, 10)
            got, want = exported.run(x)[0], model(x)
            assert float((got - want).norm() / want.norm()) < 0.03


SCRIPT = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[4])
options.register_custom_ops_library(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options)
given = numpy.load(sys.argv[3])
(y,) = session.run(None, {session.get_inputs()[0].name: given["x"]})
assert "torch" not in sys.modules and "ksurgeon" not in sys.modules
numpy.testing.assert_allclose(y, given["y"], atol=1e-5, rtol=1e-4)
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_the_library_needs_neither_ksurgeon_nor_torch(tmp_path, threads):
    model = nn.Sequential(KLinear(512, 512), KLinear(512, 256, structure=Dense()))
    ksurgeon.export_model(model, tmp_path / "model.onnx", torch.randn(2, 512), kernels=True)
    x = torch.randn(301, 512)
    with torch.no_grad():
        np.savez(tmp_path / "given.npz", x=x.numpy(), y=model(x).numpy())
    given = [tmp_path / "model.onnx", ksurgeon.onnx_library(), tmp_path / "given.npz", str(threads)]
    subprocess.run([sys.executable, "-c", SCRIPT, *map(str, given)], check=True)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 9])
def test_images_on_the_sessions_threads(tmp_path, threads, batch):
    """Large enough to be shared."""
    model = nn.Sequential(
        KPointwiseConv(256, 256), nn.ReLU(), KPointwiseConv(256, 64, structure=Dense())
    ).eval()
    ksurgeon.export_model(model, tmp_path / "model.onnx", torch.randn(2, 256, 28, 28), kernels=True)
    x = torch.randn(batch, 256, 28, 28)
    with torch.no_grad():
        np.savez(tmp_path / "given.npz", x=x.numpy(), y=model(x).numpy())
    given = [tmp_path / "model.onnx", ksurgeon.onnx_library(), tmp_path / "given.npz", str(threads)]
    subprocess.run([sys.executable, "-c", SCRIPT, *map(str, given)], check=True)


def test_names_of_outputs_and_open_lengths(tmp_path):
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    model = BertModel(config).eval()
    ids = torch.randint(0, 50, (2, 6))
    inputs = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)
    }  # fmt: skip
    ksurgeon.convert(model, "low_rank", inputs)
    exported = ksurgeon.export_model(model, tmp_path / "model.onnx", inputs, kernels=True)
    assert exported.opened == "batch and length"
    assert nodes(exported.file)
    graph = onnx.load(exported.file).graph
    assert [output.name for output in graph.output] == ["last_hidden_state", "pooler_output"]
    assert {given.name for given in graph.input} == set(inputs)
    longer = {name: value.repeat(3, 2)[:, :9] for name, value in inputs.items()}
    with torch.no_grad():
        torch.testing.assert_close(
            exported.run(longer)[0], model(**longer).last_hidden_state, atol=1e-4, rtol=1e-4
        )


def changed(file, change):
    model = onnx.load(file)
    change(next(node for node in model.graph.node if node.domain == "ksurgeon"), model.graph)
    onnx.save(model, file)


def attribute(name, value):
    def change(node, graph):
        for held in node.attribute:
            if held.name == name:
                held.i = value

    return change


def without(number):
    return lambda node, graph: node.input.pop(number)


def given_at_run_time(node, graph):
    graph.input.append(onnx.helper.make_tensor_value_info("later", onnx.TensorProto.FLOAT, [1, 1, 5, 24]))
    node.input[1] = "later"


@pytest.mark.parametrize(
    ("int8", "change", "message"),
    [
        (False, attribute("bias", 0), "type or shape"),
        (False, attribute("activation", 99), "other inputs or attributes"),
        (False, without(2), "fit|size"),
        (False, given_at_run_time, "initialisers"),
        (True, attribute("first", 0), "other inputs or attributes"),
        (True, attribute("first", 9), "other inputs or attributes"),
        (True, attribute("first", 1), "sizes"),
        (True, without(2), "other inputs or attributes"),
    ],
)
def test_damaged_programs_are_refused(tmp_path, int8, change, message):
    model = nn.Sequential(KLinear(24, 36, structure=LowRank(rank=5))).eval()
    if int8:
        ksurgeon.quantize(model)
    file = ksurgeon.export_model(model, tmp_path / "model.onnx", torch.randn(2, 24), kernels=True).file
    changed(file, change)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(ksurgeon.onnx_library())
    with pytest.raises(Exception, match=message):
        onnxruntime.InferenceSession(str(file), options)


@pytest.mark.parametrize("int8", [False, True])
def test_other_dtypes_are_refused(tmp_path, int8):
    model = nn.Sequential(KLinear(24, 36, structure=LowRank(rank=5))).eval()
    if int8:
        ksurgeon.quantize(model)
    x = torch.randn(2, 24, dtype=torch.float64)
    with pytest.raises(ExportError, match=r"for float32, and 0 has torch\.float64"):
        ksurgeon.export_model(model.double(), tmp_path / "m.onnx", x, kernels=True)


def test_what_cannot_be(tmp_path):
    with pytest.raises(ExportError, match="pt2 has no kernels"):
        ksurgeon.export_model(network(), tmp_path / "m.pt2", torch.randn(2, 48), kernels=True)
