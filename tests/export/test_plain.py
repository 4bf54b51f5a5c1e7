"""PyTorch's own exporters: what they make of K-modules needs no ksurgeon either."""

import subprocess
import sys

import onnx
import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon.kmatrix.structures import Kaleidoscope, Sum
from tests.export import dynamic_batch

MODULES = {
    "linear": (lambda: ksurgeon.KLinear(20, 12), (4, 20)),
    "sum": (lambda: ksurgeon.KLinear(96, 96, structure=Sum(Kaleidoscope(), share=0.8)), (4, 96)),
    "convolution": (lambda: ksurgeon.KPointwiseConv(24, 40, groups=2, stride=2), (4, 24, 6, 6)),
    "shuffle": (lambda: ksurgeon.KChannelShuffle(12, 3), (4, 12, 5, 5)),
    "transform": (lambda: ksurgeon.KTransform("rdft", 12), (4, 12)),
}
RUN = (
    "import sys, torch; sys.modules['ksurgeon'] = None\n"
    "for file, x, y in torch.load(sys.argv[1]):\n"
    "    torch.testing.assert_close(torch.export.load(file).module()(x), y)"
)


def made(name):
    torch.manual_seed(0)
    make, shape = MODULES[name]
    return nn.Sequential(make(), nn.Identity()).eval(), torch.randn(shape)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_torch_export(name, strict, gradients):
    model, x = made(name)
    with torch.set_grad_enabled(gradients):
        program = torch.export.export(model, (x,), strict=strict, dynamic_shapes=dynamic_batch())
    assert not any("ksurgeon" in str(node.target) for node in program.graph.nodes)
    x = torch.cat([x, x, x]) if dynamic_batch() else x
    torch.testing.assert_close(program.module()(x), model(x))


def test_a_saved_program_loads_without_ksurgeon(tmp_path):
    written = []
    for name in MODULES:
        model, x = made(name)
        torch.export.save(torch.export.export(model, (x,)), tmp_path / f"{name}.pt2")
        written.append((str(tmp_path / f"{name}.pt2"), x, model(x).detach()))
    torch.save(written, tmp_path / "written.pt")
    subprocess.run([sys.executable, "-c", RUN, tmp_path / "written.pt"], check=True)


@pytest.mark.parametrize("name", ["linear", "sum"])
def test_onnx(tmp_path, name):
    model, x = made(name)
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    assert {node.domain for node in onnx.load(tmp_path / "model.onnx").graph.node} <= {"", "ai.onnx"}


def test_an_exported_program_can_be_trained():
    model, x = made("linear")
    program = torch.export.export(model.train(), (x,)).module()
    for parameters, module in ((program.parameters(), program), (model.parameters(), model)):
        module(x).square().sum().backward()
        assert all(parameter.grad is not None for parameter in parameters)
    for got, want in zip(program.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad)
