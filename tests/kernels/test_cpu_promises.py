"""The promises around the compiled kernels: no stale weights, no leaks, threads, errors, backends."""

import copy
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor, nn

from ksurgeon.errors import StructureError
from ksurgeon.kernels import apply_chain, available_backends, cpu, reference
from ksurgeon.kernels.chosen import CHOSEN
from ksurgeon.kernels.cpu import pack
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from tests.chains import assert_near
from tests.kernels.layouts import LAYOUTS, exact, layer_of, vectors

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled")


def outputs_of(layer: KLinear | KPointwiseConv, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the layer gives by the kernels, and by its dense matrix in float64."""
    with torch.inference_mode():
        got = layer(x)
    return got, exact(layer, x)


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_change_of_the_factors_goes_unseen(layout: str, count: int) -> None:
    torch.manual_seed(0)
    layer, x = layer_of(layout, 64, 64), vectors(layout, count, 64)

    def check() -> None:
        assert_near(*outputs_of(layer, x), torch.float32)

    check()
    with torch.no_grad():
        layer.matrix.factors[2][0, 0, 0, 0] += 3
    check()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    layer(x).square().sum().backward()
    torch.optim.Adam(layer.parameters(), lr=0.1).step()
    check()
    layer.matrix.factors[1].data = torch.randn_like(layer.matrix.factors[1])
    check()
    layer.matrix.factors[0].data.mul_(-2)
    check()
    layer.matrix.factors[0] = nn.Parameter(torch.randn_like(layer.matrix.factors[0]))
    check()
    layer.load_state_dict({name: torch.randn_like(value) for name, value in layer.state_dict().items()})
    check()
    layer.double().float()
    check()
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.matrix.factors[3].neg_()
    assert_near(*outputs_of(other, x), torch.float32)
    check()
    restored = pickle.loads(pickle.dumps(layer))
    assert_near(*outputs_of(restored, x), torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_writes_past_the_version_counter_are_seen_where_all_is_compared(layout: str) -> None:
    layer, x = layer_of(layout, 64, 64), vectors(layout, 40, 64)
    outputs_of(layer, x)
    for factor in layer.matrix.factors:
        for k in (0, 7, factor.numel() - 1):
            factor.detach().numpy().reshape(-1)[k] += 1
            assert_near(*outputs_of(layer, x), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 40])
def test_signs_and_powers_of_two_written_past_the_version_counter_are_seen(
    rows: int, dtype: torch.dtype
) -> None:
    for size in (64, 128, 512, 1024):
        layer, x = KLinear(size, size, dtype=dtype), torch.randn(rows, size, dtype=dtype)
        for change in (lambda p: p.data.neg_(), lambda p: p.data.mul_(2), lambda p: p.data.div_(4)):
            with torch.inference_mode():
                layer(x)
                change(layer.matrix.factors[0])
                want = reference.apply_chain(x, list(layer.matrix.factors), -1, layer.bias)
                torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_transposed_view_of_the_same_memory_is_seen_where_all_is_compared(layout: str) -> None:
    layer, x = layer_of(layout, 64, 64), vectors(layout, 40, 64)
    outputs_of(layer, x)
    for factor in layer.matrix.factors:
        factor.data = factor.data.mT
        assert_near(*outputs_of(layer, x), torch.float32)


def test_factors_made_in_inference_mode_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        layer, x = KLinear(64, 64).bfloat16(), torch.randn(3, 64).bfloat16()
        want = layer(x)
        monkeypatch.setattr(pack, "Pack", None)
        assert torch.equal(layer(x), want)


def test_factors_made_in_inference_mode_are_never_stale() -> None:
    with torch.inference_mode():
        layer, x = KLinear(32, 32), torch.randn(1, 32)
        for _ in range(3):
            layer.matrix.factors[0][0, 0, 0, 0] += 1
            assert_near(layer(x), exact(layer, x), torch.float32)


def test_packs_die_with_their_factors() -> None:
    layer = KLinear(32, 32)
    before = len(pack._PACKS)
    with torch.inference_mode():
        layer(torch.randn(2, 32))
    assert len(pack._PACKS) == before + 1
    del layer
    assert len(pack._PACKS) == before


def test_wrong_arguments_raise_before_native_code() -> None:
    factors = list(KMatrix(16, 16).factors)
    with pytest.raises(ValueError, match="takes vectors of 16"):
        cpu.apply_chain(torch.randn(3, 15), [f.detach() for f in factors], -1)
    with pytest.raises(ValueError, match="bias must have shape"):
        cpu.apply_chain(torch.randn(3, 16), [f.detach() for f in factors], -1, torch.randn(15))
    with pytest.raises(ValueError, match="bias must be on the CPU"):
        cpu.apply_chain(torch.randn(3, 16), [f.detach() for f in factors], -1, torch.randn(16, device="meta"))
    for dim in (2, -3):
        with pytest.raises(IndexError, match="expected -2 to 1"):
            cpu.apply_chain(torch.randn(16, 16), [f.detach() for f in factors], dim)
    first = factors[0].detach()
    with pytest.raises(ValueError, match="one dtype"):
        cpu.apply_chain(torch.randn(3, 16), [factors[0].detach(), factors[1].detach().double()], -1)
    with pytest.raises(ValueError, match="activation 'tanh': expected None or one of relu"):
        apply_chain(torch.randn(3, 16), [f.detach() for f in factors], -1, None, "tanh")
    with pytest.raises(StructureError, match="do not compose"):
        cpu.apply_chain(torch.randn(3, 16), [first, torch.randn(1, 1, 4, 5)], -1)


@pytest.mark.parametrize("outs", [32, 64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_short_way_holds_no_references(layout: str, outs: int) -> None:
    layer, x = layer_of(layout, 64, outs), vectors(layout, 2, 64)
    with torch.inference_mode():
        want = layer(x).clone()
        held = [x, layer.bias, layer.matrix.factors[0], x.dtype, torch.empty_like]
        before, blocks = [sys.getrefcount(thing) for thing in held], sys.getallocatedblocks()
        for _ in range(200):
            assert torch.equal(layer(x), want)
        assert [sys.getrefcount(thing) for thing in held] == before
        assert sys.getallocatedblocks() - blocks < 100
        assert layer(torch.cat([x[:, ::2]] * 2, 1)).shape == want.shape
        with pytest.raises(ValueError, match="expected 64 entries"):
            layer(x[:, :63])


def test_threads_change_nothing() -> None:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    layer, conv = KLinear(512, 512), KPointwiseConv(128, 128)
    waves, signal = KLinear(1024, 1024, dtype=torch.complex64), torch.randn(40, 1024, dtype=torch.complex64)
    images = torch.randn(2, 128, 14, 14)
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            x = torch.randn(300, 512, generator=torch.Generator().manual_seed(1), requires_grad=True)
            y = layer(x)
            layer.zero_grad()
            y.square().mean().backward()
            waves.zero_grad()
            waves(signal).abs().sum().backward()
            with torch.inference_mode():
                results.append(
                    [y, layer(x[:1]), layer(x), conv(images), x.grad, layer.matrix.factors[0].grad.clone()]
                )
                results[-1] += [waves(signal), waves(signal[:1]), waves.matrix.factors[0].grad.clone()]
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_calls_from_many_threads(layout: str) -> None:
    layer = layer_of(layout, 256, 256)
    inputs = [vectors(layout, 64 if layout == "rows" else 4, 256) for _ in range(4)]
    with torch.inference_mode():
        wanted = [layer(x) for x in inputs]
    failures = []

    def work(k: int) -> None:
        with torch.inference_mode():
            for _ in range(50):
                if not torch.equal(layer(inputs[k]), wanted[k]):
                    failures.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


_SCRIPT = """
import torch
from ksurgeon.kernels.cpu import apply_chain, instruction_set
from ksurgeon.kernels.cpu.native import library
from ksurgeon.kernels.cpu.ops import chain
from ksurgeon.kernels import reference

def near(got, want, tolerance):
    assert (got - want).abs().max() / want.abs().max() < tolerance

def check():
    for shapes in ([(4, 3, 5, 6)], [(1, 64, 4, 4), (16, 1, 4, 16)], [(8, 8, 8, 8), (64, 1, 3, 8)]):
        for dtype in (torch.float32, torch.float64, torch.complex64):
            exact = torch.complex128 if dtype.is_complex else torch.float64
            factors = [torch.randn(s, dtype=dtype) for s in shapes]
            inputs = shapes[0][0] * shapes[0][1] * shapes[0][3]
            for size in ((7, inputs), (2, inputs, 19)):
                x, dim = torch.randn(size, dtype=dtype), 1
                want = reference.apply_chain(x.to(exact), [f.to(exact) for f in factors], dim)
                near(apply_chain(x, factors, dim), want, 1e-13 if dtype == torch.float64 else 1e-5)
            if not dtype.is_complex:
                y = apply_chain(x, factors, dim, None, "gelu")
                assert (y - torch.nn.functional.gelu(want)).abs().max() < 1e-4
        stored = [torch.randn(s).bfloat16() for s in shapes]
        x = torch.randn(2, inputs, 19).bfloat16().requires_grad_()
        y = chain(x, stored, None, 1)
        want = reference.apply_chain(x.double(), [f.double() for f in stored], 1)
        near(y, want, 1e-2)
        near(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(want.sum(), x)[0], 1e-2)
        with torch.no_grad():
            near(apply_chain(x.mT.contiguous(), stored, -1), want.mT, 2e-2)

print(instruction_set())
for name in ("avx512_bf16", "avx512", "avx2", "portable"):
    if library().ks_choose(name.encode()):
        torch.manual_seed(0)
        check()
        print(instruction_set())
"""


def test_every_instruction_set() -> None:
    levels = ["avx512_bf16", "avx512", "avx2", "portable"]
    levels = levels[levels.index(cpu.instruction_set()) :]
    environment = os.environ | {"KSURGEON_CPU_ISA": "portable", "KSURGEON_TUNE": "0"}
    done = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["portable", *levels], done.stderr


def test_the_backend_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cpu" in available_backends()
    factors = [torch.randn(2, 3, 4, 5)]
    x = torch.randn(2, 30)
    for name in ("cpu", "reference"):
        monkeypatch.setenv("KSURGEON_BACKEND", name)
        CHOSEN.clear()
        want = apply_chain(x, factors)
        assert CHOSEN.by_device[x.device].name == name
    monkeypatch.undo()
    CHOSEN.clear()
    torch.testing.assert_close(apply_chain(x, factors), want)


def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from ksurgeon.kernels.cpu import native

    monkeypatch.setattr(native, "_ABI", native._ABI + 1)
    loaded, why = native._load()
    assert loaded is None and "install ksurgeon again" in why


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_a_permutation_of_any_numbers_is_an_index_copy(dtype: torch.dtype) -> None:
    factor = torch.eye(4)[[2, 0, 3, 1]].to(dtype).view(1, 1, 4, 4)
    x = torch.randn(3, 4, dtype=dtype)
    x[0, 0] = float("inf")  # times zero it would be NaN
    assert torch.equal(apply_chain(x, [factor]), x[:, [2, 0, 3, 1]])
