"""Memory that is short, or was freed: errors, as PyTorch raises, and no crash."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from torch import Tensor

from ksurgeon.kernels import cpu
from ksurgeon.kernels.cpu.ops import chain
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from tests.kernels.layouts import LAYOUTS, layer_of, vectors

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled")


def free(tensor: Tensor) -> None:
    tensor.untyped_storage().resize_(0)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_freed_factors_are_an_error_until_they_are_back(
    layout: str, count: int, grad: bool, packed: bool
) -> None:
    """As FSDP frees them: views of one flat tensor."""
    layer, x = layer_of(layout, 64, 64), vectors(layout, count, 64)
    with torch.no_grad():
        want = layer(x)
    flat = torch.cat([factor.detach().view(-1) for factor in layer.matrix.factors])
    kept, at = flat.clone(), 0
    for factor in layer.matrix.factors:
        factor.data = flat[at : at + factor.numel()].view_as(factor)
        at += factor.numel()
    with torch.set_grad_enabled(grad):
        if packed:
            layer(x)
        free(flat)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"memory of a factor of shape .* is not allocated"):
                layer(x)
        flat.untyped_storage().resize_(kept.nbytes)
        flat.data.copy_(kept)
        torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-5)


def test_freed_arguments_of_every_entry() -> None:
    conv, layer = KPointwiseConv(32, 32), KLinear(32, 32)
    images = torch.randn(2, 32, 5, 5)
    with torch.no_grad():
        conv(images)
        free(conv.matrix.factors[1])
        with pytest.raises(RuntimeError, match="memory of a factor"):
            conv(images)
    factors = [factor.detach() for factor in layer.matrix.factors]
    for layout, count in product(LAYOUTS, (1, 40)):
        mapped, whole = layer_of(layout, 32, 32), vectors(layout, count + 1, 32)
        x = whole[1:]
        with torch.no_grad():
            mapped(x)
            free(whole)
            with pytest.raises(RuntimeError, match="memory of the input"):
                mapped(x)
        with pytest.raises(RuntimeError, match="memory of the input"):
            mapped(x)
        with pytest.raises(RuntimeError, match="memory of the input"):
            chain(x, factors, None, 1)
    x = torch.randn(3, 32)
    y = layer(x)
    free(layer.matrix.factors[0])
    with pytest.raises(RuntimeError, match="memory of a factor"):
        y.sum().backward()
    for layout in LAYOUTS:
        mapped, x = layer_of(layout, 32, 32), vectors(layout, 3, 32)
        with torch.no_grad():
            mapped(x)
            free(mapped.bias)
            with pytest.raises(RuntimeError, match="memory of the bias"):
                mapped(x)


def test_factors_without_memory_are_an_error() -> None:
    layer = KLinear(32, 32, device="meta")
    for grad in (False, True):
        with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=r"on the CPU.*got meta"):
            layer(torch.randn(2, 32))


_SHORT = """
import os, resource, torch
from ksurgeon.kernels.cpu.pack import find_pack
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.structures import Dense

def used():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

def attempt(function, left):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 3
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used() + left, used() + left))
        function()
        code = 0
    except MemoryError as error:
        code = 1 if "intermediate vectors" in str(error) else 2
    except RuntimeError:
        code = 2
    finally:
        os._exit(code)

wide = KLinear(4, 2**19, structure=Dense())
half = KLinear(4, 2**19, structure=Dense()).bfloat16()
conv = KPointwiseConv(4, 2**19, structure=Dense())
x = torch.randn(4, 4)
for layer in (wide, half, conv):
    factors = [factor.detach() for factor in layer.matrix.factors]
    find_pack(factors).rows(factors, 4), find_pack(factors).columns(factors)

@torch.no_grad()
def rows(): wide(x)
@torch.no_grad()
def halves(): half(x.bfloat16())
@torch.no_grad()
def columns(): conv(torch.randn(1, 4, 1, 16))
def training():
    from ksurgeon.kernels.cpu.run import backward
    factors = [torch.randn(1, 2**18, 2, 2)] * 2
    g = torch.randn(1, 2**19)
    try:
        backward(g, g, factors, -1, True, True)
    except RuntimeError:
        pass
for function in (rows, halves, columns):
    codes = [attempt(function, mib << 20) for mib in (0, 4, 12, 20, 28, 36, 44, 60, 2000)]
    assert codes[-1] == 0 and 1 in codes and set(codes) <= {0, 1, 2}, (function, codes)
assert {attempt(training, mib << 20) for mib in range(0, 60, 4)} <= {0, 1, 2}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_short_memory_is_an_error() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KSURGEON_TUNE": "0"}
    subprocess.run([sys.executable, "-c", _SHORT], check=True, env=environment, timeout=120)


def test_no_rows_need_no_memory():
    """In a thread that has computed nothing yet, by factors large enough to be shared out."""
    factors = (torch.randn(1, 1, 1024, 1024),)

    def empty():
        with torch.no_grad():
            return cpu.apply_chain(torch.randn(0, 1024), factors, -1)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(empty).result().shape == (0, 1024)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vectors_that_another_thread_gives_other_memory(layout):
    def fresh():
        return vectors(layout, 64 if layout == "rows" else 5, 256)

    layer, x, stop = layer_of(layout, 256, 256), fresh(), threading.Event()

    def exchange():
        while not stop.is_set():
            x.data = fresh()

    other = threading.Thread(target=exchange)
    other.start()
    try:
        with torch.no_grad():
            assert all(layer(x).isfinite().all() for _ in range(3000))
    finally:
        stop.set()
        other.join()
