"""Products run on the threads that PyTorch has, and on threads of their own only where it has none."""

import ctypes
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ksurgeon.kernels import cpu
from ksurgeon.kmatrix.linear import KLinear
from tests.chains import TOLERANCE, assert_near, dense, drawn

pytestmark = [
    pytest.mark.skipif(not cpu.is_available(), reason="the kernels were not compiled"),
    pytest.mark.skipif(sys.platform != "linux", reason="counts threads as Linux does"),
]

if cpu.is_available():
    from ksurgeon.kernels.cpu.native import library, team

_MS = 1_000_000  # nanoseconds
_START = """
import os, resource, torch
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kernels.cpu.native import team
torch.set_num_threads(2)
layer, x = KLinear(1024, 1024), torch.randn(1024, 1024)
def threads():
    return len(os.listdir("/proc/self/task"))
def same(one, other):  # torch.equal would share out its work, too
    return bool((one.numpy() == other.numpy()).all())
"""
_ONE_TEAM = """
with torch.no_grad():
    layer(x[:1])
    alone = threads()
    layer(x[:1])
    assert threads() == alone, "one row of a small layer woke a second thread"
    x.relu()
    with_torch = threads()
    for _ in range(3):
        layer(x)
        x.relu()
    assert threads() == with_torch, (alone, with_torch, threads())
"""
# In the child of a fork libgomp's threads are missing; the kernels' own pool takes as many as it gets.
_FORK = """
with torch.no_grad():
    x.relu()
    want = layer(x)
    if not os.fork():
        assert same(layer(x), want)
        pages = int(open("/proc/self/statm").read().split()[0])
        most = pages * resource.getpagesize() + (1 << 29)
        if team() == "libgomp":
            torch.set_num_threads(4000)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        os._exit(0 if same(layer(x), want) else 1)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""


def run(script: str) -> None:
    environment = {**os.environ, "KSURGEON_TUNE": "0"}
    subprocess.run([sys.executable, "-c", _START + script], check=True, env=environment, timeout=120)


def test_the_team_is_that_of_pytorch() -> None:
    backend = torch.__config__.parallel_info().partition("ATen parallel backend:")[2]
    assert (team() != "own") == ("OpenMP" in backend)


def test_kernels_start_no_threads_beside_those_of_pytorch() -> None:
    run(_ONE_TEAM)


def test_a_forked_child_computes_and_needs_no_thread_that_it_is_not_given() -> None:
    run(_FORK)


@pytest.mark.skipif(cpu.is_available() and team() == "own", reason="PyTorch was built without OpenMP")
def test_a_product_inside_of_a_parallel_region_stays_on_its_thread() -> None:
    """As in a region whose every thread multiplies; a team inside of a team could wait for ever."""
    region = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if region is None:
        pytest.skip("this OpenMP runtime has no GOMP_parallel")
    layer, x = KLinear(512, 512), torch.randn(64, 512)
    with torch.inference_mode():
        want, found = layer(x), []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def work(_: int) -> None:
        with torch.inference_mode():
            found.append(torch.equal(layer(x), want))

    region(work, None, ctypes.c_uint(2), ctypes.c_uint(0))
    assert found == [True, True]


def test_callers_of_many_threads_of_their_own() -> None:
    layer, x = KLinear(256, 256), torch.randn(512, 256)
    with torch.inference_mode():
        want = layer(x)

    def work(_: int) -> bool:
        torch.set_num_threads(2)
        with torch.inference_mode():
            return all(torch.equal(layer(x), want) for _ in range(20))

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))
    finally:
        torch.set_num_threads(before)


def test_products_stay_on_one_thread_while_others_come_late() -> None:
    kernels = library()

    def is_tried_again() -> bool:
        end = time.monotonic() + 10
        while kernels.ks_on_time(4) == 1 and time.monotonic() < end:
            time.sleep(0.01)
        return bool(kernels.ks_on_time(4) == 4)

    def is_late() -> bool:
        kernels.ks_shared(3 * _MS, _MS // 5)
        return bool(kernels.ks_on_time(4) == 1)

    kernels.ks_insist(-1)  # conftest.py insists on all
    try:
        assert is_tried_again(), "after what products of earlier tests lost"
        kernels.ks_shared(0, 10**10)  # much gained, which counts for one turn of another process
        assert not is_late(), "once after many products"
        # Several times, since this process itself may lose its core for as long as products stay alone.
        assert any(is_late() for _ in range(5))
        assert kernels.ks_on_time(1) == 1
        assert is_tried_again()
        assert any(is_late() for _ in range(5)), "one turn on trial"
    finally:
        kernels.ks_insist(1)
    assert kernels.ks_on_time(4) == 4


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 1, 203, 301), (1, 1, 517, 203)],  # a low rank: one group, its outputs are shared out
        [(2, 1, 130, 160), (1, 2, 200, 130)],
        [(3, 40, 12, 11), (5, 1, 70, 288)],
        [(4, 16, 64, 64), (16, 16, 16, 16)],
    ],
    ids=str,
)
def test_few_rows_are_shared_out_among_threads(
    shapes: list[tuple[int, int, int, int]], dtype: torch.dtype
) -> None:
    factors = tuple(drawn(dtype, *shape) / shape[3] ** 0.5 for shape in shapes)
    matrix = dense(list(factors))
    bias, before = drawn(dtype, len(matrix)), torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            for rows in (1, 2, 3, 9, 20):
                x = drawn(dtype, rows, matrix.shape[1])
                want = x.to(matrix.dtype) @ matrix.T + bias.to(matrix.dtype)
                activation = None if dtype.is_complex else "relu"
                with torch.inference_mode():
                    got = cpu.apply_chain(x, factors, -1, bias, activation)
                assert_near(got, want if activation is None else want.relu(), dtype)
    finally:
        torch.set_num_threads(before)
