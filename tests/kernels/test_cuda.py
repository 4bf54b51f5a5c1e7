"""The Triton kernels: on a GPU if there is one, else in Triton's interpreter; compiled without one too."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ksurgeon.kernels import cuda, reference
from ksurgeon.kernels.chosen import CHOSEN
from ksurgeon.kernels.cuda.backend import CudaBackend
from ksurgeon.kernels.cuda.layout import vectors_along
from ksurgeon.kernels.cuda.plan import merge_for, outer_tiles, step_tiles
from ksurgeon.kernels.dispatch import backend_of
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import Kaleidoscope
from ksurgeon.patterns.pattern import Pattern
from tests.kernels.triton_cases import (
    DEVICE,
    GPU,
    TOLERANCE,
    error,
    exact_of,
    factors_of,
    poisoned_memory,
    triton_kernels,
)

pytest.importorskip("triton")


@pytest.fixture(scope="module", autouse=True)
def run() -> Iterator[ModuleType]:
    with triton_kernels() as module:
        yield module


@pytest.fixture
def poison() -> Iterator[None]:
    with poisoned_memory():
        yield


CASES = [
    # patterns (a, b, c, d) in the order applied, shape of the input, dimension
    ([(1, 16, 16, 4)], (5, 64), -1),
    ([(3, 20, 18, 1)], (33, 54), -1),
    ([(2, 7, 5, 3), (6, 3, 7, 1)], (2, 3, 30), -1),
    ([(1, 64, 16, 3), (3, 8, 64, 1)], (20, 48), -1),
    ([(1, 70, 66, 2)], (1, 132), -1),
    ([(1, 4, 4, 9), (3, 3, 12, 1)], (2, 36, 5, 7), 1),
    ([(1, 3, 2, 20)], (2, 40, 3, 4), 1),
    ([(5, 2, 2, 5)], (50, 9), 0),
    ([(1, 1, 6, 1)], (4, 6), -1),
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shapes, size, dim", CASES)
def test_chain_and_gradients(
    run: ModuleType,
    poison: None,
    shapes: list[tuple[int, ...]],
    size: tuple[int, ...],
    dim: int,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    factors = factors_of(shapes, dtype)
    x = torch.randn(size, dtype=dtype).to(DEVICE)
    bias = torch.randn(Pattern(*shapes[-1]).out_features, dtype=dtype).to(DEVICE)
    y = run.forward(x, factors, bias, dim, way="steps")
    g = torch.randn(y.shape, dtype=dtype).to(DEVICE)
    exact, gradients = exact_of(x, factors, dim, bias, g)
    assert y.dtype == dtype and y.shape == exact.shape
    assert error(y, exact) < TOLERANCE[dtype]
    if run.best(factors) == "whole":
        assert error(run.forward(x, factors, bias, dim, way="whole"), exact) < TOLERANCE[dtype]
        of_x, none = run.backward(g, x, factors, dim, True, False)
        assert none is None and error(of_x, gradients[0]) < TOLERANCE[dtype]
    of_x, of_factors = run.backward(g, x, factors, dim, True, True)
    for got, wanted in zip([of_x, *of_factors], gradients, strict=True):
        assert got.dtype == dtype and got.shape == wanted.shape
        assert error(got, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_rows_are_cut_into_slices_and_shares(run: ModuleType, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shapes = [(1, 16, 16, 16), (2, 128, 128, 1)]
    assert merge_for(tuple(Pattern(*shape) for shape in shapes), 4) == (1, 1)
    factors = factors_of(shapes, dtype)
    x = torch.randn(300 if not GPU else 30000, 256).to(DEVICE, dtype)
    g = torch.randn_like(x)
    exact, gradients = exact_of(x, factors, -1, None, g)
    assert error(run.forward(x, factors, None, -1, way="steps"), exact) < TOLERANCE[dtype]
    of_x, of_factors = run.backward(g, x, factors, -1, True, True)
    for got, wanted in zip([of_x, *of_factors], gradients, strict=True):
        assert error(got, wanted) < TOLERANCE[dtype]


def test_merged_on_the_device_as_elsewhere(run: ModuleType) -> None:
    from ksurgeon.kernels.cuda.merging import merge, pull_back
    from ksurgeon.patterns.merge import merge_counts

    torch.manual_seed(0)
    factors = factors_of(list(Kaleidoscope().patterns(48, 96)), torch.float32)
    counts = (2, len(factors) - 3, 1)
    wanted = merge_counts(factors, counts)
    for got, exact in zip(merge([f.detach() for f in factors], counts), wanted, strict=True):
        assert got.is_contiguous() and torch.allclose(got, exact, atol=1e-6)
    gradients = [torch.randn_like(step) for step in wanted]
    pulled = pull_back([f.detach() for f in factors], counts, [g.clone() for g in gradients])
    for got, exact in zip(pulled, torch.autograd.grad(wanted, factors, gradients), strict=True):
        assert torch.allclose(got, exact, atol=1e-4)


@pytest.mark.parametrize(
    "inputs", ["transposed", "sliced", "expanded", "negated", "permuted", "spaced", "channels_last"]
)
def test_inputs_are_read_where_they_lie(run: ModuleType, inputs: str) -> None:
    torch.manual_seed(0)
    dim, x = -1, torch.randn(18, 24, device=DEVICE)
    if inputs == "transposed":
        x = torch.randn(24, 18, device=DEVICE).T
    elif inputs == "sliced":
        x = torch.randn(36, 60, device=DEVICE)[::2, 5:53:2]
    elif inputs == "expanded":
        x = torch.randn(1, 24, device=DEVICE).expand(18, 24)
    elif inputs == "negated":
        x = torch._neg_view(x)
    elif inputs == "permuted":
        dim, x = 1, torch.randn(3, 4, 24, 5, device=DEVICE).permute(1, 2, 0, 3)
    elif inputs == "spaced":
        dim, x = 1, torch.randn(2, 24, 3, 10, device=DEVICE)[..., ::2]
        assert vectors_along(x, 1).inner_stride == 2
    else:
        dim, x = 1, torch.randn(2, 24, 3, 5, device=DEVICE).contiguous(memory_format=torch.channels_last)
    factors = factors_of([(1, 4, 4, 6), (6, 5, 4, 1)], torch.float32)
    with torch.no_grad():
        y = cuda.apply_chain(x, factors, dim)
    g = torch.randn_like(y)
    exact, gradients = exact_of(x.clone(), factors, dim, None, g)
    assert error(y, exact) < 1e-5
    of_x, _ = run.backward(g, x, factors, dim, True, False)
    assert error(of_x, gradients[0]) < 1e-5
    if inputs == "channels_last":
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert of_x.is_contiguous(memory_format=torch.channels_last)


def test_only_tensors_with_many_strides_are_copied() -> None:
    assert vectors_along(torch.empty(2, 3, 4), 2).split is False
    assert vectors_along(torch.empty(2, 24, 3, 5), 1).split is True
    assert vectors_along(torch.empty(2, 3, 5, 24).movedim(-1, 1), 1).split is False
    assert vectors_along(torch.empty(4, 6, 24, 5)[::2, ::3], 2) is None


def test_no_rows_and_wrong_sizes(run: ModuleType) -> None:
    factors = factors_of([(1, 4, 4, 6)], torch.float32)
    empty = torch.empty(0, 24, device=DEVICE)
    assert run.forward(empty, factors, None, -1, way="steps").shape == (0, 24)
    of_x, of_factors = run.backward(empty, empty, factors, -1, True, True)
    assert of_x.shape == (0, 24) and not of_factors[0].any()
    with pytest.raises(ValueError, match="takes vectors of 24 entries, got 23"):
        run.forward(torch.empty(2, 23, device=DEVICE), factors, None, -1, way="steps")
    with pytest.raises(ValueError, match="bias must have shape"):
        run.forward(
            torch.empty(2, 24, device=DEVICE), factors, torch.empty(23, device=DEVICE), -1, way="steps"
        )


@pytest.mark.parametrize("way", ["whole", "steps", "reference"])
def test_changed_factors_are_merged_again(run: ModuleType, way: str) -> None:
    from ksurgeon.kernels.cuda import pack

    torch.manual_seed(0)
    factors = factors_of([(1, 16, 16, 4), (4, 16, 16, 1)], torch.float32)
    x = torch.randn(3, 64, device=DEVICE)
    first = run.forward(x, factors, None, -1, way=way)
    assert pack.merged_once(factors, way)[0] is pack.merged_once(factors, way)[0]
    with torch.no_grad():
        factors[1].mul_(2)
    assert torch.allclose(run.forward(x, factors, None, -1, way=way), 2 * first, atol=1e-5)
    with torch.no_grad():
        factors[0].data.mul_(2)
    pack.forget(factors)
    assert torch.allclose(run.forward(x, factors, None, -1, way=way), 4 * first, atol=1e-5)
    held = len(pack._PACKS)
    del factors
    assert len(pack._PACKS) == held - 1


@pytest.mark.parametrize("way", ["whole", "steps"])
def test_blocks_of_angles_are_merged_once(run: ModuleType, way: str) -> None:
    from ksurgeon.kernels.cuda import pack

    structure = Kaleidoscope(parametrization="orthogonal", radix=4)
    matrix, x = KMatrix(16, structure=structure, device=DEVICE), torch.randn(3, 16, device=DEVICE)
    with torch.no_grad():
        for _ in range(2):
            factors = matrix._held()
            made = pack.merged_once(factors, way)[0]
            assert made is pack.merged_once(matrix._held(), way)[0]
            want = reference.apply_chain(x, factors, -1)
            torch.testing.assert_close(run.forward(x, factors, None, -1, way=way), want, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(cuda.apply_chain(x, factors, -1), want, rtol=1e-4, atol=1e-4)
            matrix.factors.angles.add_(1)
            assert made is not pack.merged_once(matrix._held(), way)[0]


def test_same_sums_every_time(run: ModuleType) -> None:
    torch.manual_seed(0)
    factors = factors_of([(1, 16, 16, 2)], torch.float32)
    x, g = torch.randn(400, 32, device=DEVICE), torch.randn(400, 32, device=DEVICE)
    first, second = (run.backward(g, x, factors, -1, True, True) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1][0], second[1][0])


def test_cuts_cover_the_work() -> None:
    for pattern in (Pattern(1, 64, 64, 64), Pattern(64, 64, 64, 1), Pattern(3, 29, 100, 5)):
        for rows in (1, 16, 1024, 32768):
            for in_rows in (False, True):
                for itemsize in (2, 4):
                    tiles = step_tiles(pattern, rows, in_rows, itemsize, 264)
                    assert min(tiles.rows, tiles.out, tiles.inner) >= 16  # what tl.dot takes at least
                    assert tiles.rows * tiles.group * tiles.out <= 16384
                    tiles, each = outer_tiles(pattern, rows, in_rows, itemsize, 264)
                    assert min(tiles.rows, tiles.out, tiles.inner) >= 16 and each % tiles.rows == 0
    many = step_tiles(Pattern(1, 64, 64, 64), 1, True, 2, 264)
    assert many.programs(Pattern(1, 64, 64, 64), 1) >= 256  # one row fills the device nevertheless


def test_what_the_kernels_cannot_do_is_left_to_the_reference() -> None:
    factors = [torch.randn(1, 4, 4, 4, dtype=torch.complex128, device=DEVICE)]
    x = torch.randn(3, 16, dtype=torch.complex128, device=DEVICE)
    assert torch.equal(cuda.apply_chain(x, factors, -1), reference.apply_chain(x, factors, -1))
    real = [torch.randn(1, 4, 4, 4, device=DEVICE)]
    single = x.real.float()
    mapped = torch.func.vmap(lambda v: cuda.apply_chain(v, real, -1))(single)
    assert torch.allclose(mapped, reference.apply_chain(single, real, -1), atol=1e-5)


def test_devices_that_cannot_say_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(torch.version, "hip", None)
    cuda.why_not.cache_clear()
    cuda._runs_on.cache_clear()
    try:
        device = torch.device("cuda", 3)
        with pytest.warns(UserWarning, match=r"cuda:3: .*its compute capability is 7\.5.*reference"):
            assert backend_of(device).name == "reference"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert backend_of(device).name == "reference"
        assert not cuda._runs_on("cuda", 3)
        monkeypatch.setattr(cuda, "find_spec", lambda name: None)
        assert "pip install triton" in cuda.why_not(4)
    finally:
        CHOSEN.clear()
        cuda.why_not.cache_clear()
        cuda._runs_on.cache_clear()


def test_what_a_compiler_cannot_trace_is_asked_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSURGEON_BACKEND", "cuda")
    monkeypatch.setattr(CudaBackend, "why_missing", lambda self, device=None: "")
    CHOSEN.clear()
    layer, x = KLinear(32, 32, device=DEVICE), torch.randn(3, 32, device=DEVICE)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    try:
        assert torch.allclose(
            compiled(x), reference.apply_chain(x, list(layer.matrix.factors), -1, layer.bias)
        )
    finally:
        torch._dynamo.reset()
        CHOSEN.clear()


def test_operators_are_traced_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_runs_on", lambda kind, index: True)
    with FakeTensorMode():
        factors = [torch.empty(shape, device="cuda") for shape in ((1, 16, 4, 4), (16, 1, 5, 4))]
        x = torch.empty(2, 64, 5, 7, device="cuda")
        y = cuda.apply_chain(x, factors, 1)
        assert y.shape == (2, 80, 5, 7) and y.is_contiguous() and y.is_cuda
        of_x, *of_factors = cuda.ops.chain_backward(y, x, factors, 1, True, True)
        assert of_x.stride() == x.stride() and [t.shape for t in of_factors] == [f.shape for f in factors]
        structure = Kaleidoscope(parametrization="orthogonal")
        with torch.no_grad():
            held = KMatrix(64, structure=structure, device="cuda", start="empty")._held()
            assert cuda.apply_chain(x, held, 1).shape == x.shape
        last = x.to(memory_format=torch.channels_last)
        assert cuda.apply_chain(last, factors, 1).is_contiguous(memory_format=torch.channels_last)
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
        monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
        assert cuda.apply_chain(x, factors, 1).dtype == torch.bfloat16


def run_python(*arguments: str, timeout: float = 250) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_triton_is_not_imported_for_tensors_on_the_cpu() -> None:
    code = """
import sys, torch
from ksurgeon.kmatrix.matrix import KMatrix
matrix = KMatrix(16)
with torch.no_grad(): matrix(torch.randn(2, 16))
print("triton" in sys.modules)
matrix(torch.randn(2, 16)).sum().backward()  # PyTorch imports Triton itself for an operator's derivative
print("ksurgeon.kernels.cuda.step" in sys.modules)
"""
    assert run_python("-c", code).split() == ["False", "False"]


@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_without_a_gpu_and_without_spills(capability: int) -> None:
    lines = run_python(
        "-W", "ignore", str(Path(__file__).with_name("compiled.py")), str(capability)
    ).splitlines()
    assert len(lines) > 10
    for line in lines:
        facts = json.loads(line)
        assert facts["stack"] == 0, f"registers are spilled: {line}"
        assert facts["matrix_instructions"] > 0, f"no tensor cores: {line}"
        assert facts["shared"] <= 99 * 1024, f"more than a GPU of capability 8.6 has: {line}"
