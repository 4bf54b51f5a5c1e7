"""Which way a chain is computed on a GPU: checked against the reference there, then measured.

The first product of a kind tries every way on random numbers: a way whose results are off is never taken, and
of the others the fastest is. What was found is kept for the next process. Where nothing may depend on a
measurement (``KSURGEON_TUNE=0``, ``torch.use_deterministic_algorithms``) the first way that gives right
results is taken.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib.metadata import version
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ksurgeon.kernels import reference
from ksurgeon.kernels.cache import Cache, may_tune
from ksurgeon.kernels.cuda import run
from ksurgeon.kernels.cuda.launch import allows_tf32
from ksurgeon.kernels.cuda.pack import Way
from ksurgeon.kernels.layout import in_rows
from ksurgeon.patterns.pattern import Pattern
from ksurgeon.patterns.rotated import patterns_of
from ksurgeon.torch_private import sleep_on_gpu, without_modes

__all__ = ["Direction", "Key", "cache_of", "key_of", "way_of", "ways"]

_log = logging.getLogger(__name__)


class Key(NamedTuple):
    """What a choice depends on: the chain, what it is multiplied by, and how exactly."""

    patterns: tuple[Pattern, ...]
    dtype: torch.dtype
    vectors: int
    in_rows: bool
    tf32: bool

    def __str__(self) -> str:
        chain = " ".join("x".join(map(str, pattern)) for pattern in self.patterns)
        kind = str(self.dtype).removeprefix("torch.") + (" as tf32" if self.tf32 else "")
        return f"{self.vectors} {'rows' if self.in_rows else 'columns'} of {kind}: {chain}"

    @property
    def tolerance(self) -> float:
        """Relative error that results may have."""
        return _TOLERANCE_OF_TF32 if self.tf32 else _TOLERANCES[self.dtype]


_REVISION = 2  # of the kernels: raised where what is faster may have changed
_CLASSES = (16, 256, 4096, 32768)
_CHECKED = 64  # vectors whose results are compared
_ROOM = 1 / 4  # of the free memory that a trial may take
_WARM_UP, _TIMES = 2, 5
_CYCLES = 30_000_000  # of the device, some 15 ms
_TOLERANCES = {torch.float32: 1e-4, torch.complex64: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
_TOLERANCE_OF_TF32 = 1e-2

Direction = Literal["forward", "backward"]
_Call = Callable[[Tensor], list[Tensor]]

_known: dict[tuple[int, Direction, Key], Way] = {}


@lru_cache
def cache_of(index: int) -> Cache:
    """Where the choices of a GPU are kept."""
    properties = torch.cuda.get_device_properties(index)
    machine = (
        f"{properties.name}, {properties.major}.{properties.minor}, torch {torch.__version__}, "
        f"triton {version('triton')}, ksurgeon's kernels {_REVISION}"
    )
    return Cache("cuda", machine)


def key_of(x: Tensor, factors: Sequence[Tensor], dim: int) -> Key:
    """What the choice for a product depends on."""
    axis = dim % x.dim()
    count = x.numel() // max(x.shape[axis], 1)
    size = next((size for size in _CLASSES if count <= size), _CLASSES[-1])
    tf32 = x.dtype in (torch.float32, torch.complex64) and allows_tf32()
    return Key(patterns_of(factors), x.dtype, size, in_rows(x, axis), tf32)


def way_of(direction: Direction, x: Tensor, factors: Sequence[Tensor], dim: int) -> Way:
    """The way to compute a product, or its gradients, on the GPU that ``x`` is on.

    It is the reference where nothing can be tried: inside a CUDA graph that no such product went before, and
    where there is no memory to try.
    """
    return _chosen(direction, key_of(x, factors, dim), x.device.index)


def _chosen(direction: Direction, key: Key, index: int) -> Way:
    found = _known.get((index, direction, key))
    if found is not None:
        return found
    if torch.cuda.is_current_stream_capturing():
        return "reference"  # nothing can be tried inside a graph: a product before it does
    choice = _kept(direction, key, index) if may_tune() else None
    if choice is None:
        choice = _tried(direction, key, index)
        if choice is None:
            return "reference"  # no room for a trial: the next product tries again
        if may_tune():
            cache_of(index).put(f"{direction}, {key}", choice)
    _known[index, direction, key] = choice
    return choice


def _kept(direction: Direction, key: Key, index: int) -> Way | None:
    choice = cache_of(index).get(f"{direction}, {key}")
    return choice if choice in ("whole", "steps", "reference") else None


@contextmanager
def _undisturbed(index: int) -> Iterator[None]:
    """Neither modes of the caller nor its stream's work have a part in what happens inside."""
    with (
        without_modes(),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cuda", enabled=False),
        torch.cuda.device(index),
    ):
        yield


def _tried(direction: Direction, key: Key, index: int) -> Way | None:
    """The fastest way that gives right results, or None if there is no memory to find it."""
    begun = time.perf_counter()
    with _undisturbed(index):
        try:
            tried, few, all_of_them, exact = ways(direction, key, torch.device("cuda", index))
            right = {name: way for name, way in tried.items() if _is_right(name, way, few, exact, key)}
            times = {name: _time(partial(way, all_of_them)) for name, way in right.items()}
        except torch.OutOfMemoryError:
            return None
    # The reference is always there: it is what the others are compared with.
    choice = min(times, key=times.__getitem__) if may_tune() else next(iter(times))
    _log.debug(
        "%s on GPU %d: %s of %s (µs), found in %.2f s",
        f"{direction}, {key}",
        index,
        choice,
        times,
        time.perf_counter() - begun,
    )
    return choice


def ways(
    direction: Direction, key: Key, device: torch.device
) -> tuple[dict[Way, _Call], Tensor, Tensor, list[Tensor]]:
    """Every way to compute a product of random numbers, or its gradients.

    Returns:
        The ways by name, each a function of the results' gradient; such a gradient that is zero but for the
        first vectors, and one that is not; and what is exact for the former: results or gradients of the
        first vectors, gradients of the factors.
    """
    patterns, dtype, count, rows, _ = key
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device, generator=generator)

    widest = max(max(p.in_features, p.out_features) for p in patterns)
    if device.type == "cuda":
        bytes_each = 8 * widest * dtype.itemsize
        count = min(count, max(int(torch.cuda.mem_get_info(device)[0] * _ROOM) // bytes_each, _CHECKED))

    def vectors(size: int) -> Tensor:
        return random(count, size) if rows else random(1, size, count)

    factors, dim = [random(*p.shape) / p.c**0.5 for p in patterns], -1 if rows else 1
    x, g = vectors(patterns[0].in_features), vectors(patterns[-1].out_features)
    few = torch.zeros_like(g)
    _first(few, rows).copy_(_first(g, rows))
    doubles = [t.to(torch.promote_types(dtype, torch.float64)) for t in (_first(x, rows), *factors)]

    if direction == "backward":

        def backward(way: Way, g: Tensor) -> list[Tensor]:
            of_x, of_factors = run.backward(g, x, factors, dim, True, True, way=way)
            assert of_x is not None and of_factors is not None
            return [of_x, *of_factors]

        with torch.enable_grad():
            leaves = [t.requires_grad_() for t in doubles]
            y = reference.apply_chain(leaves[0], leaves[1:], dim)
        exact = list(torch.autograd.grad(y, leaves, _first(g, rows).to(y.dtype)))
        return {way: partial(backward, way) for way in ("steps", "reference")}, few, g, exact

    def forward(way: Way, _: Tensor) -> list[Tensor]:
        return [run.forward(x, factors, None, dim, way=way)]

    names: list[Way] = ["steps", "reference"]
    if run.best(factors) == "whole":
        names.insert(0, "whole")
    exact = [reference.apply_chain(doubles[0], doubles[1:], dim)]
    return {way: partial(forward, way) for way in names}, few, g, exact


def _first(x: Tensor, rows: bool) -> Tensor:
    return x[:_CHECKED] if rows else x[..., :_CHECKED]


def _is_right(name: str, way: _Call, g: Tensor, exact: Sequence[Tensor], key: Key) -> bool:
    """Whether a way gives the exact results, as far as they are known; says so if it does not."""
    if name == "reference":
        return True
    try:
        got = way(g)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler or driver that Triton does not get on with
        found = f"{type(error).__name__}: {error}"
    else:
        parts = [_first(got[0], key.in_rows), *got[1:]]
        errors = [
            float((part.to(wanted.dtype) - wanted).norm() / wanted.norm())
            for part, wanted in zip(parts, exact, strict=True)
        ]
        if all(error <= key.tolerance for error in errors):  # false for NaN
            return True
        found = f"relative error {max(errors):.1e}"
    warnings.warn(
        f"K-matrices: the implementation {name!r} fails its check on this GPU ({found}) and is not used for "
        f"{key}; please report this",
        stacklevel=2,
    )
    return False


def _time(call: Callable[[], object]) -> float:
    """Microseconds that a call keeps the host busy and that it keeps the device busy, added up.

    The device waits until all calls are queued. Small calls are as long as the host takes, and large ones as
    long as the device does, or where they are replayed in a CUDA graph; the sum tells both.
    """
    for _ in range(_WARM_UP):
        call()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    sleep_on_gpu(_CYCLES)
    start.record()
    begun = time.perf_counter()
    for _ in range(_TIMES):
        call()
    host = time.perf_counter() - begun
    end.record()
    end.synchronize()
    return (host * 1e6 + start.elapsed_time(end) * 1e3) / _TIMES
