"""What PyTorch's own counter of operations counts for K-modules."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import ksurgeon
from ksurgeon.kernels import reference_only
from ksurgeon.kmatrix.structures import Kaleidoscope, Sum

MODULES = {
    "linear": (lambda: ksurgeon.KLinear(48, 40), (3, 48)),
    "sum": (lambda: ksurgeon.KLinear(96, 96, structure=Sum(Kaleidoscope(), share=0.8)), (3, 96)),
    "convolution": (lambda: ksurgeon.KPointwiseConv(24, 24, groups=2, stride=2), (2, 24, 6, 6)),
}


def counted(module, x):
    with FlopCounterMode(display=False) as counter:
        y = module(x)
        forward = counter.get_total_flops()
        y.sum().backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("make, shape", MODULES.values(), ids=MODULES)
def test_as_many_as_of_the_same_products_of_pytorch(make, shape, gradients):
    module, x = make(), torch.randn(shape, requires_grad=gradients)
    got = counted(module, x)
    with reference_only():
        assert got == counted(module, x)
    vectors = module(x).numel() // module(x).shape[1]
    assert got[0] == 2 * vectors * module.matrix.multiplications


def test_a_convolution_in_int8():
    model, x = torch.nn.Sequential(ksurgeon.KPointwiseConv(24, 24, groups=2)), torch.randn(2, 24, 6, 6)
    ksurgeon.quantize(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() == 2 * 2 * 36 * model[0].matrix.factors.numel


@pytest.mark.parametrize("make, shape", MODULES.values(), ids=MODULES)
def test_a_backward_pass_alone(make, shape):
    module, x = make(), torch.randn(shape)
    forward, both = counted(module, x)
    loss = module(x).sum()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() == both - forward


def test_whichever_is_imported_first():
    script = (
        "import {}, {}, torch; from torch.utils.flop_counter import FlopCounterMode\n"
        "layer, x = ksurgeon.KLinear(8, 8), torch.randn(1, 8)\n"
        "with FlopCounterMode(display=False) as counter: layer(x)\n"
        "assert counter.get_total_flops() == 2 * layer.matrix.multiplications"
    )
    for names in (("ksurgeon", "torch.utils.flop_counter"), ("torch.utils.flop_counter", "ksurgeon")):
        subprocess.run([sys.executable, "-c", script.format(*names)], check=True)
