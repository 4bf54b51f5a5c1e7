"""Labelled examples before a training from scratch, and held-out ones from elsewhere."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon.errors import DataError
from ksurgeon.train.check import check_examples
from ksurgeon.train.clock import Clock
from ksurgeon.train.data import open_data
from ksurgeon.train.loop import Loop
from ksurgeon.train.settings import make_settings

NET = nn.Linear(4, 3)


def _examples(count=20, classes=3, seed=0):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return [(vector, number % classes) for number, vector in enumerate(x)]


def _opened(data, **options):
    return open_data(data, NET, make_settings(task="classification"), **options)


def _spoilt(value):
    data = _examples()
    data[7] = (torch.tensor([0.0, value, 0.0, 0.0]), 1)
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_spoilt(float("nan")), "example 7 has NaN"),
        (_spoilt(float("inf")), "example 7 has NaN or infinite"),
        (_examples(classes=1), "have the label 0; give data with two classes"),
        (_examples(classes=4), "label 3 is out of range: the model has 3 classes"),
        ([vector for vector, _ in _examples()], "has no labels"),
    ],
)
def test_what_cannot_be_trained_on(data, message):
    with pytest.raises(DataError, match=message):
        check_examples(_opened(data), NET)


def test_held_out_examples_of_their_own():
    """All are evaluated at the end, prepared in their own way, and the last weights are the result."""
    data, test = _examples(40), [(x + 1, y) for x, y in _examples(200, seed=1)]
    opened = _opened(data, test=test, preprocessor=lambda x: x * 2, test_preprocessor=lambda x: x - 1)
    check_examples(opened, NET)
    assert len(opened.train) == 40 and len(opened.held_out) == 200
    (batch,) = opened.batches(opened.held_out, 200)
    torch.testing.assert_close(batch["inputs"][0], torch.stack([x - 1 for x, _ in test]))
    torch.testing.assert_close(next(opened.batches([3]))["inputs"][0][0], 2 * data[3][0])
    settings = make_settings(task="classification", final="last", ema=0, steps=6, batch=8, lr=0.5, warmup=0)
    torch.manual_seed(0)
    trained = ksurgeon.finetune(nn.Linear(4, 3), opened, settings=settings, device="cpu")
    last = trained.history[-1]
    assert trained.best == last and last.step == 6 and last.examples == 200
    assert trained.history[0].examples < 200
    x, y = torch.stack([x - 1 for x, _ in test]), torch.tensor([y for _, y in test])
    with torch.no_grad():
        right = (trained.model(x).argmax(1) == y).float().mean()
    assert last.student["accuracy"] == pytest.approx(float(right))
    with pytest.raises(DataError, match="different examples: tensors and text"):
        _opened(data, test=["a", "b"])


@pytest.mark.parametrize("patience", [0, 2])
def test_however_it_ends_the_last_weights_are_evaluated_on_all(patience, heard, monkeypatch):
    """Also where the time is over, or nothing was better, right after an evaluation."""
    monkeypatch.setattr(Clock, "progress", lambda self, step, elapsed: min(1.0, step / 40))
    held_out = _Unreadable(_examples(200, seed=1))
    opened = _opened(_examples(40), test=held_out)
    model, finished = nn.Linear(4, 3), []
    monkeypatch.setattr("ksurgeon.train.session.balance_factors", lambda model: finished.append(model))
    if not patience:
        monkeypatch.setattr(Loop, "_due", lambda loop: loop.state.step == 40)
    settings = make_settings(
        task="classification", final="last", ema=0, steps=40, batch=8, lr=1e-9, evaluate=40, patience=patience
    )
    trained = ksurgeon.finetune(model, opened, settings=settings, device="cpu", listener=heard)
    assert trained.best == trained.history[-1] and trained.best.examples == 199
    assert trained.steps == 40 if not patience else trained.steps < 40
    assert len(finished) == 2
    assert len(trained.broken) == 1


class _Unreadable(list):
    """Examples of which one cannot be read."""

    def __getitem__(self, number):
        if number == 7:
            raise OSError("bad block")
        return super().__getitem__(number)


def test_seeds_decide_about_all_random_numbers():
    def drawn(seed):
        random.seed()
        np.random.seed()
        found = []

        def prepare(x):
            found.append((random.random(), np.random.rand(), float(torch.rand(()))))
            return x

        settings = make_settings(task="classification", steps=1, batch=8, held_out=0, seed=seed)
        ksurgeon.finetune(nn.Linear(4, 3), _examples(), settings=settings, preprocessor=prepare, device="cpu")
        return found[-8:]

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert first == again and not {n for each in first for n in each} & {n for each in other for n in each}
