"""Finds the OpenMP runtime that PyTorch runs on, so that the kernels use its threads and no second pool."""

import ctypes
from pathlib import Path

import torch

__all__ = ["use_openmp"]

_PARALLEL = ("GOMP_parallel", "__kmpc_fork_call")  # of GCC's interface, of LLVM's
_QUESTIONS = ("omp_get_thread_num", "omp_get_num_threads", "omp_in_parallel")


def use_openmp(library: ctypes.CDLL) -> str:
    """Give the kernels the team of PyTorch's OpenMP runtime.

    Returns:
        Whose threads the kernels run on from now on: "libgomp", "libomp" (LLVM's or Intel's), or "own" where
        PyTorch uses no OpenMP.
    """
    runtime = _runtime()
    if runtime is None:
        return "own"
    is_llvm = library.ks_team(*(_address(runtime, name) for name in (*_PARALLEL, *_QUESTIONS)))
    return "libomp" if is_llvm else "libgomp"


def _runtime() -> ctypes.CDLL | None:
    """Where PyTorch's own calls end: in the first runtime that the whole process sees, such as a preloaded
    one, or else in the one that PyTorch's library was linked with."""
    if "OpenMP" not in torch.__config__.parallel_info().partition("ATen parallel backend:")[2]:
        return None
    linked = (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")
    for name in (None, *map(str, linked)):
        try:
            found = ctypes.CDLL(name)
        except OSError:
            continue
        if any(_address(found, name) for name in _PARALLEL) and all(_address(found, q) for q in _QUESTIONS):
            return found
    return None


def _address(library: ctypes.CDLL, name: str) -> int | None:
    try:
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    except AttributeError:
        return None
