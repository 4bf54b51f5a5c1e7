"""Training on a loss of one's own, without labels and without a teacher."""

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon.errors import TrainingError
from ksurgeon.train.permutations import relaxed
from tests.train.conftest import vectors

SETTINGS = {"batch": 16, "device": "cpu", "weight_decay": 0, "ema": 0, "final": "last", "evaluate": 4}


def test_a_model_learns_what_the_loss_says(heard):
    model, told = nn.Linear(64, 4), []

    def smallness(given, inputs, progress):
        told.append((torch.is_grad_enabled(), progress))
        (x,) = inputs
        return given(x).square().mean(1)

    trained = ksurgeon.finetune(
        model, vectors(), loss=smallness, steps=60, lr=1e-2, listener=heard, **SETTINGS
    )
    assert trained.best.loss < 0.5 * trained.history[0].loss
    assert set(heard.steps[0].terms) == {"loss"} and trained.best.student == {}
    progress = [share for training, share in told if training]
    assert progress == sorted(progress) and progress[0] == 0 and progress[-1] == 59 / 60
    assert told[-1] == (False, 1.0)


def test_a_loss_that_grows_with_the_progress_is_compared_at_its_end(heard):
    model = nn.Linear(64, 4)
    options = SETTINGS | {"final": "best"}

    def growing(given, inputs, progress):
        return given(*inputs).square().mean(1) + 10 * progress

    trained = ksurgeon.finetune(model, vectors(), loss=growing, steps=60, lr=1e-2, listener=heard, **options)
    assert trained.best.step > 0 and all(evaluation.loss >= 10 for evaluation in trained.history)


def test_a_loss_that_raises_is_named():
    with pytest.raises(TrainingError, match=r"the loss <lambda> raised TypeError: .*; it is called with"):
        ksurgeon.finetune(nn.Linear(64, 4), vectors(), loss=lambda model: model, steps=1, **SETTINGS)


def test_soft_permutations_begin_anywhere_and_are_hardened_by_it(heard):
    order = torch.tensor([3, 0, 5, 1, 4, 2, 7, 6])
    data = vectors(size=8)

    class Arranged(nn.Module):
        def __init__(self):
            super().__init__()
            self.entry = nn.Identity()

        def forward(self, x):
            return self.entry(x)

    model = Arranged()
    rule = ksurgeon.Rule.model_validate(
        {
            "name": "arrange",
            "insert": [{"after": ["entry"], "dim": 1, "with": {"structure": "dense"}, "start": "identity"}],
        }
    )
    ksurgeon.convert(model, rule, torch.stack(data[:2]))

    def disorder(given, inputs, progress):
        (x,) = inputs
        return (given(x) - x[:, order]).square().mean(1)

    how = {"loss": disorder, "permutations": "soft", "spread": 0.1, "listener": heard, **SETTINGS}
    trained = ksurgeon.finetune(model, data, steps=100, lr=0.1, **how)
    assert not relaxed(model) and trained.best.loss < 1e-6
    x = torch.stack(data)
    assert torch.equal(model(x), x[:, order])
    (hardened,) = trained.hardened.values()
    assert hardened.permutation == tuple(order.tolist()) and heard.phases[-1].kept
