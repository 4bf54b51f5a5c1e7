"""Which way to merge is the fastest on this machine: measured once for each class of products, and kept.

A class is a chain's patterns, the dtype computed in, the kind of product and the number of threads. It is
measured at its first product in inference, in some milliseconds, about as long as packing the weights
takes. Doing so later would save these where a class never comes back, and change the last digits of a
layer's results, and its packed weights, in the middle of a process. Training and exported calls never come
here: they merge by fixed rules.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from itertools import accumulate, pairwise
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from ksurgeon.kernels.cache import Cache, cpu_model, may_tune
from ksurgeon.kernels.cpu.native import KINDS, Chain, instruction_set, library
from ksurgeon.kernels.cpu.plan import Kind, candidates
from ksurgeon.patterns.pattern import Pattern, hull

__all__ = ["Tuner", "choose", "machine", "tuner"]

Counts = tuple[int, ...]

_SECONDS = 0.02
_ROUNDS, _ROUND = 12, 1e-4
_PATIENCE = 1.0  # seconds to wait for another thread's measurement
_GAIN = 0.97  # a choice other than the heuristic's has to take less than so much of its time
_VECTORS: dict[Kind, int] = {"few": 1, "rows": 64, "columns": 196}
_MOST_WORK = 1 << 22  # multiplications of a product that is measured


@lru_cache(maxsize=1)
def machine() -> str:
    """What a choice depends on besides its class: processor, instruction set, and the kernels themselves."""
    try:
        kernels = hashlib.sha256(Path(library()._name).read_bytes()).hexdigest()[:16]
    except OSError:  # an upgrade under a running process
        kernels = "of a file that is gone"
    return f"{cpu_model()}; {instruction_set()}; kernels {kernels}"


class Tuner:
    """Choices among ``candidates``, from the cache or measured; one thread measures, others wait for it.

    Args:
        open_cache: gives the cache, at the first class that has more than one candidate.
        measure: gives the index of the fastest of the candidates.
    """

    def __init__(
        self,
        open_cache: Callable[[], Cache],
        measure: Callable[[Sequence[Pattern], torch.dtype, Kind, Sequence[Counts]], int] | None = None,
    ) -> None:
        self._open, self._measure = open_cache, measure or fastest
        self._cache: Cache | None = None
        self._known: dict[str, Counts] = {}
        self._measuring = threading.Lock()

    @property
    def cache(self) -> Cache:
        """Where the choices are kept."""
        if self._cache is None:
            self._cache = self._open()
        return self._cache

    def choose(self, patterns: tuple[Pattern, ...], dtype: torch.dtype, kind: Kind) -> Counts:
        """How to merge a chain, as ``merge_counts`` takes it; the heuristic's choice where tuning is off
        (``cache.may_tune``)."""
        options = candidates(patterns, dtype, kind)
        if len(options) == 1 or not may_tune():
            return options[0]
        key = _key(patterns, dtype, kind)
        known = self._known.get(key)
        # A lock that a fork copied while it was held is never released: no one waits for it for ever.
        if known is None and self._measuring.acquire(timeout=_PATIENCE):
            try:
                known = self._known.get(key) or self._kept_or_measured(key, patterns, dtype, kind, options)
            finally:
                self._measuring.release()
        return self._known.setdefault(key, known or options[0])

    def _kept_or_measured(
        self, key: str, patterns: Sequence[Pattern], dtype: torch.dtype, kind: Kind, options: Sequence[Counts]
    ) -> Counts:
        kept = self.cache.get(key)
        known = next((option for option in options if list(option) == kept), None)
        if known is None:
            known = options[self._measure(patterns, dtype, kind, options)]
            self.cache.put(key, known)
        return known


def _key(patterns: Sequence[Pattern], dtype: torch.dtype, kind: Kind) -> str:
    chain = " ".join("x".join(map(str, pattern)) for pattern in patterns)
    return f"{str(dtype).removeprefix('torch.')} {kind} {torch.get_num_threads()} threads: {chain}"


def fastest(patterns: Sequence[Pattern], dtype: torch.dtype, kind: Kind, options: Sequence[Counts]) -> int:
    """Index of the candidate that takes the least time, about 20 ms being spent; 0 is kept in doubt."""
    library().ks_insist(1)  # on as many threads as the answer is kept for
    try:
        return _fastest(patterns, dtype, kind, options)
    finally:
        library().ks_insist(-1)


def _fastest(patterns: Sequence[Pattern], dtype: torch.dtype, kind: Kind, options: Sequence[Counts]) -> int:
    end = perf_counter() + _SECONDS
    products: list[Callable[[], object]] = []
    chains = [_merged(patterns, counts) for counts in options]
    work = max(sum(pattern.numel for pattern in chain) for chain in chains)
    vectors = max(1, min(_VECTORS[kind], _MOST_WORK // work))  # the same for all
    for chain in chains:
        products.append(_product(chain, dtype, kind, vectors))
        products[-1]()
        if perf_counter() > end - _SECONDS / 2:  # long chains: making them must not take all the time
            break
    start = perf_counter()
    products[0]()
    loops = max(1, int(_ROUND / max(perf_counter() - start, 1e-7)))
    best = [float("inf")] * len(products)
    for done in range(_ROUNDS):
        for position, product in enumerate(products):
            start = perf_counter()
            for _ in range(loops):
                product()
            best[position] = min(best[position], perf_counter() - start)
        if perf_counter() > end:
            if not done:
                return 0
            break
    winner = min(range(len(best)), key=best.__getitem__)
    return winner if best[winner] < _GAIN * best[0] else 0


def _merged(patterns: Sequence[Pattern], counts: Counts) -> list[Pattern]:
    ends = list(accumulate(counts, initial=0))
    return [reduce(hull, patterns[first:last]) for first, last in pairwise(ends)]


def _product(
    patterns: Sequence[Pattern], dtype: torch.dtype, kind: Kind, vectors: int
) -> Callable[[], object]:
    """A product with a chain of these factors; its values are all 1, as no number may be denormal."""
    factors = [torch.full(pattern.shape, 1 / pattern.c, dtype=dtype, device="cpu") for pattern in patterns]
    chain = Chain.plain(factors) if kind == "columns" else Chain.packed(factors)

    def ones(features: int) -> Tensor:
        return torch.ones(vectors * features, dtype=dtype, device="cpu")

    x, y = ones(chain.in_features), ones(chain.out_features)
    native, threads, code = library(), torch.get_num_threads(), KINDS[dtype]
    if kind == "columns":
        return lambda: native.ks_columns(
            chain.address, x.data_ptr(), y.data_ptr(), 1, vectors, None, 0, threads, code
        )
    return lambda: native.ks_rows(
        chain.address, x.data_ptr(), chain.in_features, y.data_ptr(), vectors, None, 0, threads, code
    )


tuner = Tuner(lambda: Cache("cpu", machine()))
choose = tuner.choose
