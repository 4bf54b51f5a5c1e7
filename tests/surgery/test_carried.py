"""What somebody gave a layer or its weight goes with it, or is said; runs leave the model as it was."""

from collections import deque

import torch
from torch import Tensor, nn

import ksurgeon
from ksurgeon.kmatrix.structures import Kaleidoscope
from ksurgeon.rules.schema import Replacement, Rule

X = torch.randn(3, 64)
RULE = Rule(name="all", replace=(Replacement(find="linear", structure=Kaleidoscope(), start="orthogonal"),))


def test_attributes_of_layers_and_weights_there_and_back() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8)).eval()
    layer = model[0]
    layer.lr_mult = 3
    layer.weight.no_decay, layer.weight._optim, layer.bias.no_decay = True, {"lr": 1e-4}, True
    layer.register_buffer("mask", torch.ones(3), persistent=False)
    layer.scale = nn.Parameter(torch.ones(1))
    ksurgeon.convert(model, RULE, X)
    layer = model[0]
    assert layer.lr_mult == 3 and layer.bias.no_decay
    assert all(factor.no_decay and factor._optim == {"lr": 1e-4} for factor in layer.matrix.factors)
    assert torch.equal(layer.mask, torch.ones(3)) and "0.mask" not in model.state_dict()
    assert "0.scale" in dict(model.named_parameters())
    layer.lr_mult, layer.late = 4, True
    ksurgeon.revert(model)
    layer = model[0]
    assert type(layer) is nn.Linear and layer.lr_mult == 4 and layer.late
    assert layer.weight.no_decay and layer.weight._optim == {"lr": 1e-4}
    assert set(model.state_dict()) == {"0.weight", "0.bias", "0.scale", "1.weight", "1.bias"}
    plain = set(vars(nn.Linear(2, 2)))
    assert set(vars(layer)) - plain == {"lr_mult", "late"}


def test_hooks_that_know_the_weight_by_name_keep_their_layer() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(5))).eval()
    model[0]._register_load_state_dict_pre_hook(lambda *_: None)
    model[1].register_state_dict_post_hook(lambda *_: None)
    model[2].weight.register_hook(lambda grad: grad)
    model[3].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    reasons = [site.reason for site in ksurgeon.find(model, X)]
    assert [reason and reason.split("; ")[-1] for reason in reasons] == [
        "remove them first", "remove them first", "remove it first", "remove it first", None
    ]  # fmt: skip
    assert len(ksurgeon.convert(model, RULE, X).results) == 1


class Remembers(nn.Module):
    """Counts, keeps and caches in all the ways there are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(64))
        self.calls, self.seen, self.cache, self.last = 0, [], {}, None
        self.recent, self.plain = deque(maxlen=2), torch.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.calls += 1
        self.steps += 1
        self.plain.add_(1)
        self.mean = 0.5 * self.mean + y.mean(0)
        self.seen.append(x.shape)
        self.recent.append(len(x))
        self.cache["x"] = x
        self.last = self.late = y
        return y

    def held(self) -> tuple[object, ...]:
        tensors = (int(self.steps), self.mean.tolist(), self.plain.tolist())
        return (
            *tensors,
            self.calls,
            self.seen,
            self.cache,
            self.last,
            list(self.recent),
            hasattr(self, "late"),
        )


def test_example_runs_leave_counters_buffers_and_caches() -> None:
    model = nn.Sequential(Remembers(), nn.Linear(64, 8)).eval()
    mean, before = model[0].mean, model[0].held()
    ksurgeon.find(model, X)
    assert model[0].held() == before
    ksurgeon.convert(model, "linear", X, data=[X, X])
    assert model[0].held() == before and model[0].mean is mean
    assert set(model.state_dict()) >= {"0.steps", "0.mean"}
    model(X)
    assert model[0].calls == 1 and int(model[0].steps) == 1
