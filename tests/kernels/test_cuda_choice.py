"""Which way a chain is computed on a GPU: padded digits, the trial of every way, what is kept of it."""

import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ksurgeon.kernels import cuda, reference
from ksurgeon.kernels.activation import ACTIVATIONS
from ksurgeon.kernels.cuda.digits import packed, whole_plan
from ksurgeon.kmatrix.structures import Kaleidoscope
from ksurgeon.patterns.pattern import Pattern

pytest.importorskip("triton")

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


@pytest.fixture(scope="module", autouse=True)
def interpreted() -> Iterator[None]:
    """Kernels are interpreted where there is no GPU."""
    with pytest.MonkeyPatch.context() as patch:
        if not GPU:
            patch.setenv("TRITON_INTERPRET", "1")  # read once, when the kernels are imported
        cuda._runs_on.cache_clear()
        yield
    cuda._runs_on.cache_clear()


def applied(x: Tensor, weights: Tensor, plan) -> Tensor:
    """What the kernel of a whole chain does, by plain operations."""
    first, last = plan.places

    def places(digits) -> Tensor:
        """Place in the vector of every place in the padded one; -1 where there is none."""
        found = [
            sum(d * digit.stride for d, digit in zip(at[::-1], digits, strict=True))
            if all(d < digit.size for d, digit in zip(at[::-1], digits, strict=True))
            else -1
            for at in product(*(range(digit.padded) for digit in reversed(digits)))
        ]
        return torch.tensor(found)

    at = places(first)
    v = torch.where(at >= 0, x[:, at.clamp(min=0)], 0)
    for a, b, c, d, begin in plan.steps:
        blocks = weights[begin : begin + a * b * c * d].view(a, d, c, b)
        v = torch.einsum("racd,adcb->rabd", v.view(-1, a, c, d), blocks).reshape(len(x), -1)
    at = places(last)
    y = x.new_full((len(x), int(at.max()) + 1), float("nan"))
    y[:, at[at >= 0]] = v[:, at >= 0]
    return y


@given(n=st.integers(16, 400), m=st.integers(16, 400), itemsize=st.sampled_from([2, 4]))
def test_padded_chains_are_the_chains(n: int, m: int, itemsize: int) -> None:
    patterns = tuple(Kaleidoscope().patterns(n, m))
    plan = whole_plan(patterns, itemsize)
    if plan is None:
        return
    for size, *_ in plan.places[0] + plan.places[1]:
        assert size & (size - 1) == 0
    for *sizes, _ in plan.steps:
        assert all(size & (size - 1) == 0 for size in sizes) and min(sizes[1:3]) >= 16
    factors = [torch.randn(p.shape, dtype=torch.float64) for p in patterns]
    x = torch.randn(3, patterns[0].in_features, dtype=torch.float64)
    exact = reference.apply_chain(x, factors, -1)
    assert torch.allclose(
        applied(x, packed(factors, plan), plan), exact, rtol=1e-9, atol=1e-9 * exact.abs().max()
    )


def test_which_chains_are_kept_on_the_chip() -> None:
    def fits(n: int, m: int, itemsize: int = 2) -> bool:
        return whole_plan(tuple(Kaleidoscope().patterns(n, m)), itemsize) is not None

    assert all(fits(n, n) for n in (64, 116, 192, 256, 384, 512, 640, 768, 1024))
    assert fits(512, 1024) and fits(512, 512, 4)
    assert not fits(2048, 2048) and not fits(1024, 1024, 4) and not fits(64, 64, 8)
    assert whole_plan((Pattern(1, 8, 8, 1),), 2) is None  # narrower than a tensor core


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("way", ["whole", "steps", "reference"])
def test_bias_and_activation(activation: str, way: str) -> None:
    from ksurgeon.kernels.cuda import run

    torch.manual_seed(0)
    factors = [torch.randn(shape, device=DEVICE) / 4 for shape in ((1, 4, 16, 16), (4, 1, 32, 16))]
    x, bias = 3 * torch.randn(7, 64, device=DEVICE), torch.randn(128, device=DEVICE)
    y = run.forward(x, factors, bias, -1, activation, way=way)
    exact = reference.apply_chain(x.double(), [f.double() for f in factors], -1, bias.double(), activation)
    assert torch.allclose(y.double(), exact, atol=1e-4 if GPU else 1e-5)
    x[0, 0] = float("nan")
    assert run.forward(x, factors, bias, -1, activation, way=way)[0].isnan().all()


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """``ksurgeon.kernels.cuda.trial`` as on a GPU that has an empty cache, and knows nothing."""
    from ksurgeon.kernels.cache import Cache
    from ksurgeon.kernels.cuda import trial

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KSURGEON_TUNE", raising=False)
    monkeypatch.setattr(trial, "_known", {})
    monkeypatch.setattr(trial, "cache_of", lambda index: Cache("cuda", "a GPU"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return trial


def key(trial, n: int = 64, dtype: torch.dtype = torch.float32, rows: bool = True):
    return trial.Key(tuple(Kaleidoscope().patterns(n, n)), dtype, 16, rows, False)


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_way_is_found_right(trial, direction: str, dtype: torch.dtype, rows: bool) -> None:
    what = key(trial, dtype=dtype, rows=rows)
    state = torch.get_rng_state()
    found, few, _, exact = trial.ways(direction, what, torch.device(DEVICE))
    assert torch.equal(torch.get_rng_state(), state), "the user's random numbers are left alone"
    assert list(found)[-1] == "reference" and "steps" in found
    assert ("whole" in found) == (direction == "forward" and not dtype.is_complex)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(trial._is_right("tried", way, few, exact, what) for way in found.values())


def test_a_way_that_is_wrong_is_said_and_never_taken(trial) -> None:
    what = key(trial)
    found, few, _, exact = trial.ways("forward", what, torch.device(DEVICE))

    def off(g: Tensor) -> list[Tensor]:
        return [result * 1.01 for result in found["steps"](g)]

    def unwritten(g: Tensor) -> list[Tensor]:
        return [torch.full_like(result, float("nan")) for result in found["steps"](g)]

    def broken(g: Tensor) -> list[Tensor]:
        raise RuntimeError("ptxas was not found")

    for way, said in ((off, "error 1.0e-02"), (unwritten, "error nan"), (broken, "ptxas was not found")):
        with pytest.warns(UserWarning, match=f"'whole' fails its check on this GPU .*{said}"):
            assert not trial._is_right("whole", way, few, exact, what)


def test_choices_are_kept_and_checked(trial, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(trial, "_tried", lambda *what: tried.append(what) or "steps")
    what = key(trial)
    assert trial._chosen("forward", what, 0) == trial._chosen("forward", what, 0) == "steps"
    assert len(tried) == 1
    trial._known.clear()
    assert trial._chosen("forward", what, 0) == "steps" and len(tried) == 1, "from the file"
    trial._known.clear()
    trial.cache_of(0).put(f"forward, {what}", "rm -rf")
    assert trial._chosen("forward", what, 0) == "steps" and len(tried) == 2
    trial._known.clear()
    monkeypatch.setenv("KSURGEON_TUNE", "0")
    assert trial._chosen("forward", what, 0) == "steps" and len(tried) == 3, "no measurement is read"


def test_nothing_is_tried_inside_a_cuda_graph(trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(trial, "_tried", lambda *what: pytest.fail("tried"))
    assert trial._chosen("forward", key(trial), 0) == "reference"
    assert not trial._known


def test_no_memory_is_no_choice(trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_tried", lambda *what: None)
    assert trial._chosen("forward", key(trial), 0) == "reference"
    assert not trial._known and not trial.cache_of(0).all()


def test_what_a_choice_depends_on(trial) -> None:
    factors = [torch.empty(Pattern(1, 16, 16, 4).shape)]
    few, many = torch.empty(3, 64), torch.empty(5000, 64)
    assert trial.key_of(few, factors, -1).vectors == 16
    assert trial.key_of(many, factors, -1).vectors == 32768
    assert not trial.key_of(torch.empty(2, 64, 10, 10), factors, 1).in_rows
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert trial.key_of(few, factors, -1).tf32 and trial.key_of(few, factors, -1).tolerance == 1e-2
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert not trial.key_of(few, factors, -1).tf32


@pytest.mark.skipif(not GPU, reason="no GPU")
def test_trial_on_the_gpu(trial) -> None:
    factors = [torch.randn(p.shape, device="cuda") for p in Kaleidoscope().patterns(256, 256)]
    x = torch.randn(100, 256, device="cuda")
    for direction in ("forward", "backward"):
        assert trial.way_of(direction, x, factors, -1) in ("whole", "steps", "reference")
    assert len(trial.cache_of(0).all()) == 2


def test_an_address_of_factors_that_are_kept_is_given_to_no_other_tensor() -> None:
    from ksurgeon.kernels.cuda.pack import merged_once

    factors = [torch.nn.Parameter(torch.randn(1, 1, 64, 64)) for _ in range(2)]
    with torch.no_grad():
        merged_once(factors, "reference")
    address = factors[0].data_ptr()
    factors[0].data = torch.randn(1, 1, 64, 64)
    others = [torch.empty(1, 1, 64, 64) for _ in range(50)]
    assert address not in [other.data_ptr() for other in others]
