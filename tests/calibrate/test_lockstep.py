"""Walking a model and its changed self side by side."""

from contextlib import closing

import pytest
import torch
from torch import nn
from torch.nn.modules import module as hooks

from ksurgeon.calibrate.lockstep import affordable, can_compensate, in_lockstep
from ksurgeon.errors import InputError, SurgeryError
from ksurgeon.find import find
from tests import zoo


def batches_for(name, number=3):
    return [torch.randn(zoo.INPUTS[name], generator=torch.Generator().manual_seed(i)) for i in range(number)]


def taken(model, batches, path):
    """All vectors that the module at ``path`` took and gave."""
    found = []
    handle = model.get_submodule(path).register_forward_hook(lambda m, a, y: found.append((a[0], y)))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    return (torch.cat([pair[side].flatten(0, -2) for pair in found]).double() for side in (0, 1))


def covariance(y, x):
    return (y - y.mean(0)).T @ (x - x.mean(0)) / len(x)


def test_moments_are_of_changed_inputs_and_original_outputs():
    torch.manual_seed(0)
    model, batches = zoo.mlp().eval(), batches_for("mlp")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = nn.Linear(64, 256)
    changed = zoo.mlp().eval()
    changed.load_state_dict(before)
    changed.up = other
    x, _ = taken(changed, batches, "down")
    _, y = taken(model, batches, "down")
    order = []
    with closing(in_lockstep(model, find(model, batches[0]), batches)) as walk:
        for reached in walk:
            order.append(reached.site.path)
            if reached.site.path == "down":  # without a bias: about 0
                joint = reached.joint
                torch.testing.assert_close(joint.moment[0], x.T @ x / len(x), rtol=1e-4, atol=1e-6)
                torch.testing.assert_close(joint.cross[0], y.T @ x / len(x), rtol=1e-4, atol=1e-6)
            if reached.site.path == "up":  # with a bias, and nothing before it: about the mean, and W exactly
                x_up, y_up = taken(model, batches, "up")
                torch.testing.assert_close(
                    reached.joint.cross[0], covariance(y_up, x_up), rtol=1e-4, atol=1e-6
                )
                torch.testing.assert_close(reached.joint.output_mean, y_up.mean(0), rtol=1e-4, atol=1e-5)
            reached.replace(other if reached.site.path == "up" else model.get_submodule(reached.site.path))
    assert order == ["up", "down", "head"]
    assert not hooks._global_forward_hooks
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_target_undoes_a_linear_change_of_the_inputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 5)).double().eval()
    batches = [torch.randn(64, 8, dtype=torch.float64) for _ in range(4)]
    mixed = nn.Linear(8, 8).double()
    walk = in_lockstep(model, find(model, batches[0]), batches)
    first = next(walk)
    weight = model[0].weight.detach()[None]
    torch.testing.assert_close(first.joint.target(weight, 0.0), weight)
    first.replace(mixed)
    second = next(walk)
    target = second.joint.target(model[1].weight.detach()[None], 1e-12)
    torch.testing.assert_close(target[0] @ mixed.weight, model[1].weight @ model[0].weight)
    # A large ridge keeps the weight as it is.
    kept = second.joint.target(model[1].weight.detach()[None], 1e9)
    torch.testing.assert_close(kept[0], model[1].weight.detach())
    walk.close()
    assert not hooks._global_forward_hooks


@pytest.mark.parametrize("name", ["convnet", "convolutions", "attention"])
def test_groups_strides_and_fused_weights(name):
    model, batches = getattr(zoo, name)().eval(), batches_for(name)
    sites = [site for site in find(model, batches[0]) if can_compensate(site)]
    assert sites and not any(site.parameter or site.read for site in sites)
    for reached in in_lockstep(model, sites, batches):
        joint, site = reached.joint, reached.site
        weight = joint.target(torch.zeros_like(joint.cross), 1e-9)
        assert weight.shape == (
            len(joint.moment),
            site.out_features // len(joint.moment),
            site.in_features // len(joint.moment),
        )
        own = model.get_submodule(site.path)
        reached.replace(own)  # nothing changes, so the best weight for every site is its own
        predicted = weight @ joint.moment
        torch.testing.assert_close(predicted, joint.cross, rtol=1e-3, atol=1e-4)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.last(self.layer(self.layer(x)))


def test_a_layer_called_twice_is_stopped_at_once_and_replaced_in_both_calls():
    model, batches = Twice().eval(), [torch.randn(16, 8)]
    other, seen = nn.Linear(8, 8), None
    for reached in in_lockstep(model, find(model, batches[0]), batches):
        if reached.site.path == "last":
            seen = reached.joint.input_mean
        reached.replace(other if reached.site.path == "layer" else model.last)
    with torch.no_grad():
        torch.testing.assert_close(seen, other(other(batches[0])).mean(0).double(), rtol=1e-4, atol=1e-5)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        y = self.first(x)
        return self.a(y) if y.sum() > 1e6 else self.b(y)


def test_another_order_of_layers_is_refused_and_bad_numbers_are_named():
    model, batches = Branching().eval(), [torch.randn(4, 8)]
    huge = nn.Linear(8, 8)
    nn.init.constant_(huge.bias, 1e9)
    sites = find(model, batches[0])
    with pytest.raises(SurgeryError, match="without error compensation"):
        for reached in in_lockstep(model, sites, batches):
            reached.replace(huge)
    assert not hooks._global_forward_hooks
    with pytest.raises(InputError, match="at first, in batch 2"):
        list(in_lockstep(model, sites, [*batches, batches[0] * torch.nan]))
    assert not hooks._global_forward_hooks


def test_as_many_batches_as_fit_in_memory():
    model = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 64)).eval()
    batches = [torch.randn(8, 64) for _ in range(10)]
    one = 4 * 8 * (64 + 256) * 4  # two passes, each with twice what a layer takes and gives
    assert len(affordable(model, batches, 10 * one)) == 10
    assert len(affordable(model, batches, 3 * one + 1)) == 3
    assert len(affordable(model, batches, 1)) == 1
