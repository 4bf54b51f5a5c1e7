"""Walking a model and its changed self side by side."""

from contextlib import closing, contextmanager, suppress

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import ksurgeon
from ksurgeon.calibrate import calibrate, lockstep
from ksurgeon.calibrate.lockstep import affordable, can_compensate, in_lockstep
from ksurgeon.calibrate.modes import _Modes
from ksurgeon.errors import InputError, SurgeryError
from ksurgeon.find import find
from ksurgeon.surgery import replacements
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
    assert not hooks._has_any_global_hook()
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
    assert not hooks._has_any_global_hook()


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
    with pytest.raises(SurgeryError, match="without error propagation"):
        for reached in in_lockstep(model, sites, batches):
            reached.replace(huge)
    assert not hooks._has_any_global_hook()
    with pytest.raises(InputError, match="at first, in batch 2"):
        list(in_lockstep(model, sites, [*batches, batches[0] * torch.nan]))
    assert not hooks._has_any_global_hook()


def test_as_many_batches_as_fit_in_memory():
    model = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 64)).eval()
    batches = [torch.randn(8, 64) for _ in range(10)]
    one = 4 * 8 * (64 + 256) * 4  # two passes, each with twice what a layer takes and gives
    assert len(affordable(model, batches, 10 * one)) == 10
    assert len(affordable(model, batches, 3 * one + 1)) == 3
    assert len(affordable(model, batches, 1)) == 1


class Note(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False),
    "autocast of a GPU": lambda: torch.autocast("mps", dtype=torch.bfloat16),
    "gradients": torch.enable_grad,
    "inference": torch.inference_mode,
    "functions": Note,
    "dispatch": Watch,
    "hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
    "device": lambda: torch.device("cpu"),
    "dtype": default_dtype,
    "attention": lambda: sdpa_kernel(SDPBackend.MATH),
}


class Inside(nn.Module):
    """Calls its layers inside some mode."""

    def __init__(self, mode):
        super().__init__()
        self.first, self.last, self.mode, self.inside = nn.Linear(64, 64), nn.Linear(64, 64), mode, []

    def forward(self, x):
        with self.mode():
            x = self.first(x)
            self.inside.append(modes_now())
            x = self.last(x)
            assert modes_now() == self.inside[-1]
        return x


def modes_now():
    modes = vars(_Modes.now())
    return {name: [id(m) for m in v] if name in ("functions", "dispatch") else v for name, v in modes.items()}


@pytest.mark.filterwarnings("ignore:.*autocast")
@pytest.mark.parametrize("ending", ["walked", "left", "failed"])
@pytest.mark.parametrize("name", MODES)
def test_a_forward_keeps_its_modes_to_itself(name, ending):
    """And the caller those that it had, whenever it looks."""
    torch.manual_seed(0)
    model, batches = Inside(MODES[name]).eval(), [torch.randn(256, 64) for _ in range(3)]
    if ending == "failed":
        batches[2][0, 0] = float("nan")
    sites = find(model, batches[0])
    model.inside.clear()
    before = modes_now()
    with suppress(InputError), closing(in_lockstep(model, sites, batches)) as walk:
        for reached in walk:
            assert modes_now() == {**before, "grad": False}  # as without any mode
            if reached.site.path == "first":
                x = torch.cat(batches).double()
                torch.testing.assert_close(reached.joint.moment[0], covariance(x, x), rtol=1e-4, atol=1e-5)
                if ending == "left":
                    break
            reached.replace(nn.Linear(64, 64))
    assert modes_now() == before
    for inside in model.inside:
        assert {key for key in before if inside[key] != before[key]} - {"grad"} or name == "gradients"
        assert inside["grad"] is (name == "gradients")


@pytest.mark.parametrize("compensate", [True, False])
def test_moments_are_exact_inside_of_autocast(compensate):
    model, batches = Inside(MODES["autocast"]).eval(), [torch.randn(256, 64) for _ in range(2)]
    sites = find(model, batches[0])
    x = torch.cat(batches).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if compensate:
            with closing(in_lockstep(model, sites, batches)) as walk:
                moment, expected = next(walk).joint.moment[0], covariance(x, x)
        else:
            moment, expected = calibrate(model, sites, batches).sites["first"].moment[0], x.T @ x / len(x)
    torch.testing.assert_close(moment, expected, rtol=1e-4, atol=1e-5)


class Mapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return torch.func.vmap(self.layer)(x)


def test_a_layer_inside_of_vmap_cannot_be_held():
    model, batches = Mapped().eval(), [torch.randn(16, 8)]
    with pytest.raises(SurgeryError, match=r"calls layer inside of torch.func"):
        next(in_lockstep(model, find(model, batches[0]), batches))
    assert not hooks._has_any_global_hook()


def test_without_greenlet_it_is_said_before_the_work(monkeypatch):
    model, data = zoo.mlp().eval(), batches_for("mlp")
    monkeypatch.setattr(lockstep, "find_spec", lambda name: None)
    monkeypatch.setattr(replacements, "calibrate", lambda *_, **__: pytest.fail("the work began"))
    with pytest.raises(SurgeryError, match=r"pip install greenlet.*compensate=False"):
        ksurgeon.convert(model, "linear", data[0], data=data)
