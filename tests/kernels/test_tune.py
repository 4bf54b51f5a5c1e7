"""The tuner picks among equals, once, and keeps what it found."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ksurgeon.kernels import cpu
from ksurgeon.kernels.cache import Cache
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.patterns.merge import merge_counts
from ksurgeon.patterns.pattern import Pattern
from tests.chains import dense

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="no compiled kernels")
if cpu.is_available():
    from ksurgeon.kernels.cpu import pack, plan, tune

CHAIN = tuple(KLinear(512, 512).matrix.patterns)
KINDS = ("few", "rows", "columns")


@pytest.fixture(autouse=True)
def tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KSURGEON_TUNE")


class Fixed:
    """A measurement that always ends the same; counts how often it was made."""

    def __init__(self, index: int) -> None:
        self.index, self.made = index, 0

    def __call__(self, *_: object) -> int:
        self.made += 1
        return self.index


def tuner(measure: Fixed) -> "tune.Tuner":
    return tune.Tuner(lambda: Cache("cpu", "a machine"), measure)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_candidate_is_the_same_matrix(kind: "plan.Kind", dtype: torch.dtype) -> None:
    for sizes in ((96, 96), (96, 384), (512, 512)):
        layer = KLinear(*sizes, dtype=torch.float64)
        factors = [factor.detach() for factor in layer.matrix.factors]
        options = plan.candidates(layer.matrix.patterns, dtype, kind)
        assert len(set(options)) == len(options)
        for counts in options:
            assert sum(counts) == len(factors)
            torch.testing.assert_close(dense(merge_counts(factors, counts)), layer.weight.detach())


def test_results_are_equal_whatever_is_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = KLinear(512, 512).eval()
    inputs = [torch.randn(rows, 512) for rows in (1, 33)] + [torch.randn(2, 512, 3, 7).movedim(1, -1)]
    with torch.inference_mode():
        expected = [layer(x) for x in inputs]
        columns = layer.matrix(torch.randn(2, 512, 21), 1).shape
    for index in range(len(plan.candidates(CHAIN, torch.float32, "rows"))):
        measure = Fixed(index)
        chooser = tune.Tuner(lambda i=index: Cache("cpu", f"machine {i}"), measure)
        monkeypatch.setattr(pack, "choose", chooser.choose)
        for factor in layer.matrix.factors:
            factor.data.mul_(1)
        cpu.forget(list(layer.matrix.factors))
        with torch.inference_mode():
            for _ in range(5):
                for x, y in zip(inputs, expected, strict=True):
                    torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-5)
                assert layer.matrix(torch.randn(2, 512, 21), 1).shape == columns
        assert measure.made >= 1


def test_a_class_is_measured_once() -> None:
    measure = Fixed(1)
    chooser = tuner(measure)
    options = plan.candidates(CHAIN, torch.float32, "rows")
    assert len(options) > 1
    assert [chooser.choose(CHAIN, torch.float32, "rows") for _ in range(5)] == [options[1]] * 5
    assert measure.made == 1
    chooser.choose(CHAIN, torch.float32, "few")
    chooser.choose(CHAIN, torch.float64, "rows")
    assert measure.made == 3


def test_another_process_finds_what_was_measured() -> None:
    options = plan.candidates(CHAIN, torch.float32, "rows")
    assert tuner(Fixed(1)).choose(CHAIN, torch.float32, "rows") == options[1]
    measure = Fixed(0)
    assert tuner(measure).choose(CHAIN, torch.float32, "rows") == options[1]
    assert measure.made == 0


@pytest.mark.parametrize("kept", ["nonsense", [1, 2], {"a": 1}, 7, [[1]]])
def test_a_choice_that_is_no_candidate_is_ignored(kept: object) -> None:
    first = tuner(Fixed(1))
    first.choose(CHAIN, torch.float32, "rows")
    (key,) = first.cache.all()
    first.cache.put(key, kept)
    measure = Fixed(0)
    options = plan.candidates(CHAIN, torch.float32, "rows")
    assert tuner(measure).choose(CHAIN, torch.float32, "rows") == options[0]
    assert measure.made == 1


def test_off_means_the_heuristic(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Fixed(1)
    first = tuner(measure)
    options = plan.candidates(CHAIN, torch.float32, "rows")
    torch.use_deterministic_algorithms(True)
    try:
        assert first.choose(CHAIN, torch.float32, "rows") == options[0]
    finally:
        torch.use_deterministic_algorithms(False)
    assert measure.made == 0
    assert first.choose(CHAIN, torch.float32, "rows") == options[1]
    monkeypatch.setenv("KSURGEON_TUNE", "0")
    assert first.choose(CHAIN, torch.float32, "rows") == options[0]


def test_threads_that_come_at_once_get_one_answer() -> None:
    started, made = threading.Barrier(4), []

    def slow(*_: object) -> int:
        made.append(1)
        time.sleep(0.05)
        return 1

    chooser, answers = tune.Tuner(lambda: Cache("cpu", "a machine"), slow), []

    def ask() -> None:
        started.wait(30)
        answers.append(chooser.choose(CHAIN, torch.float32, "rows"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [plan.candidates(CHAIN, torch.float32, "rows")[1]] * 4
    assert len(made) == 1


def test_a_lock_held_for_ever_is_no_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "_PATIENCE", 0.01)
    chooser = tuner(Fixed(1))
    with chooser._measuring:
        answer = chooser.choose(CHAIN, torch.float32, "rows")
    assert answer == plan.candidates(CHAIN, torch.float32, "rows")[0]
    assert chooser.choose(CHAIN, torch.float32, "rows") == answer


def test_many_threads_on_one_layer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = KLinear(512, 512).eval(), torch.randn(16, 512)
    expected = (x.double() @ layer.weight.detach().double().T + layer.bias.detach().double()).float()
    monkeypatch.setattr(pack, "choose", tuner(Fixed(1)).choose)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with torch.inference_mode():
                for round in range(200):
                    rows = 16 if round % 3 else 1
                    torch.testing.assert_close(layer(x[:rows]), expected[:rows], rtol=1e-4, atol=1e-5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("kind", KINDS)
def test_measuring_gives_one_of_the_candidates(kind: "plan.Kind") -> None:
    options: Sequence[tuple[int, ...]] = plan.candidates(CHAIN, torch.float32, kind)
    assert 0 <= tune.fastest(CHAIN, torch.float32, kind, options) < len(options)
    one = (Pattern(1, 8, 8, 1),)
    assert tune.fastest(one, torch.float64, kind, [(1,)]) == 0


def test_training_and_compilation_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> tuple[int, ...]:
        raise AssertionError("asked to choose")

    monkeypatch.setattr(pack, "choose", refuse)
    layer, x = KLinear(64, 64), torch.randn(9, 64)
    for _ in range(4):
        expected = layer(x)
        expected.sum().backward()
    exported = torch.export.export(layer, (x,)).module()
    with torch.no_grad():
        for _ in range(4):
            torch.testing.assert_close(exported(x), expected.detach())
