"""Inserted maps stay what they are: compiled, held, reverted, converted again, and in records."""

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import Rule
from ksurgeon.errors import MatchError, RecordError, SurgeryError
from ksurgeon.kmatrix.structures import Dense, Kaleidoscope, LowRank
from ksurgeon.rules import Replacement
from ksurgeon.rules.files import read_plan, write_plan
from ksurgeon.surgery.record import record_of
from ksurgeon.surgery.replay import replay
from tests.near import near
from tests.surgery.test_insertions import insert, insertion

X = torch.linspace(-1, 1, 24).view(3, 8)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()


def dense(target):
    return Replacement(find="linear", targets=(target,), structure=Dense(), start="exact")


def inserted(*parts, replace=(), model=None):
    model = net() if model is None else model
    return model, ksurgeon.convert(model, insert(*parts, replace=replace), X)


RANDOM = insertion("before", "0", start="random")


def test_what_was_compiled_before_sees_the_map_and_sees_it_go():
    model, original = net(), net()
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    _, conversion = inserted(RANDOM, model=model)
    expected = model(X)
    assert not near(expected, original(X)) and torch.equal(compiled(X), expected)
    with conversion.undone():
        assert torch.equal(compiled(X), original(X))
    assert torch.equal(compiled(X), expected)


def test_the_last_dimension_is_the_last_of_every_tensor(tmp_path):
    _, conversion = inserted(insertion("before", "0", dim=-1, start="random"))
    write_plan(conversion.plan, tmp_path / "plan.toml")
    model = net()
    ksurgeon.convert(model, example_inputs=X, plan=read_plan(tmp_path / "plan.toml"))
    weight, z = model[0].kbefore0.weight.detach(), torch.randn(2, 8, 8)
    expected = net()(z @ weight.T)
    assert near(model(z), expected)
    ksurgeon.save(model, tmp_path / "model")
    again = ksurgeon.load(tmp_path / "model", net())
    assert near(again(z), expected) and near(ksurgeon.revert(again)(z), expected)


def test_hooks_keep_their_order():
    model, conversion = inserted(RANDOM, insertion("after", "0", start="random"))
    model[0].register_forward_pre_hook(lambda module, args: args[0].relu())
    model[0].register_forward_hook(lambda module, args, output: output.abs())
    expected = model(X)
    with conversion.undone():
        model[0].register_forward_pre_hook(lambda module, args: None)
    assert torch.equal(model(X), expected) and near(ksurgeon.revert(model)(X), expected)


def test_a_layer_that_somebody_still_holds_is_as_it_was():
    model = net()
    old, handle = model[0], model[0].register_forward_pre_hook(lambda module, args: -args[0])
    expected = old(X)
    _, conversion = inserted(RANDOM, replace=(dense("0"),), model=model)
    layer, mapped = model[0], model(X)
    assert torch.equal(old(X), expected)
    with conversion.undone():
        assert torch.equal(model[0](X), expected)
    assert near(ksurgeon.revert(model)(X), mapped) and near(layer(X), expected)
    handle.remove()
    assert not near(model(X), mapped)


def test_hooks_without_their_map_say_so():
    model, _ = inserted(RANDOM)
    del model[0].kbefore0
    with pytest.raises(SurgeryError, match="not the map, its child kbefore0"):
        model(X)


def test_no_place_at_a_map_is_offered():
    model, _ = inserted(RANDOM)
    with pytest.raises(MatchError, match="belongs to a K-matrix"):
        inserted(insertion("before", "0.kbefore0"), model=model)


class Swapped(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


SHUFFLE = (Replacement(find="channel_shuffle", structure=Kaleidoscope()),)


def shuffled():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Unflatten(1, (2, 4)), Swapped(), nn.Flatten(1, 2))
    return net.append(nn.Conv2d(8, 8, 1)).eval()


@pytest.mark.parametrize(("place", "target"), [("before", "1"), ("after", "3")])
def test_around_a_shuffle_of_several_modules(place, target):
    model, other, x = shuffled(), shuffled(), torch.randn(2, 8, 4, 4)
    part = insertion(place, target, start="random")
    ksurgeon.convert(other, insert(part), x)
    ksurgeon.convert(model, insert(part, replace=SHUFFLE), x)
    name = f"{target}.k{place}0"
    model.get_submodule(name).load_state_dict(other.get_submodule(name).state_dict())
    expected = other(x)
    assert near(model(x), expected) and near(ksurgeon.revert(model)(x), expected)


@pytest.mark.parametrize(("place", "target", "dim"), [("before", "2", 3), ("after", "1", 1)])
def test_not_inside_of_a_shuffle_that_is_replaced(place, target, dim):
    model, x, part = shuffled(), torch.randn(2, 8, 4, 4), insertion(place, target, dim=dim)
    with pytest.raises(SurgeryError, match=f"nothing is {place} {target} once"):
        ksurgeon.convert(model, insert(part, replace=SHUFFLE), x)
    assert str(model) == str(shuffled())
    ksurgeon.convert(model, Rule(name="shuffle", replace=SHUFFLE), x)
    with pytest.raises(MatchError, match="belongs to a K-matrix"):
        ksurgeon.convert(model, insert(part), x)


def test_reverted_converted_again_and_reverted(tmp_path):
    model, _ = inserted(RANDOM)
    expected = model(X)
    inserted(insertion("before", "0"), model=ksurgeon.revert(model))
    inserted(replace=(dense("0.kbefore0"), dense("0")), model=ksurgeon.revert(model))
    ksurgeon.revert(model)
    assert type(model[0]) is type(model[0].kbefore0) is nn.Linear
    ksurgeon.save(model, tmp_path / "model")
    assert near(model(X), expected) and near(ksurgeon.load(tmp_path / "model", net())(X), expected)


def test_an_owner_that_was_wrapped_is_not_saved(tmp_path):
    model, _ = inserted(RANDOM)
    model[0] = nn.Sequential(model[0])
    with pytest.raises(SurgeryError, match="inside another module now"):
        ksurgeon.save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("damage", [{"ndim": 4}, {"dim": -2}])
def test_a_record_of_another_shape_does_not_fit(damage):
    model, _ = inserted(RANDOM)
    record = record_of(model)
    for operation in record.operations:
        assert operation.ndim == 2
        vars(operation).update(damage)
    fresh = net()
    with pytest.raises(RecordError, match="does not have"):
        replay(fresh, record)
    assert str(fresh) == str(net())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_mapped_along_the_last_dimension():
    def encoder():
        torch.manual_seed(0)
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()

    z, padded = torch.randn(2, 6, 16), torch.arange(6).expand(2, 6) >= torch.tensor([[4], [6]])
    last, middle = (insertion("before", "layers.1", dim=dim, start="random") for dim in (-1, 1))
    model = encoder()
    ksurgeon.convert(model, insert(last), z)
    with torch.no_grad():
        nested = model(z, src_key_padding_mask=padded)
    assert near(nested[~padded], model(z, src_key_padding_mask=padded)[~padded])
    ksurgeon.convert(model := encoder(), insert(middle), z)
    with torch.no_grad(), pytest.raises(SurgeryError, match="enable_nested_tensor=False"):
        model(z, src_key_padding_mask=padded)


class Adding(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x) + 1


def test_an_owner_is_traced_with_its_maps():
    model, _ = inserted(
        *(insertion(p, "0", start="random") for p in ("before", "after")), model=nn.Sequential(Adding())
    )
    assert near(torch.fx.symbolic_trace(model)(X), model(X))


def test_gradual_distillation_of_a_map_that_cannot_be_the_identity(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, _ = inserted(insertion("before", "0", dim=-1, start="random", structure=LowRank(rank=4)))
    options = {"steps": 2, "batch": 16, "evaluate": 2, "device": "cpu"}
    done = ksurgeon.distill_gradually(model, net(), torch.randn(64, 8), groups=1, **options).model
    assert done[0].kbefore0.dim == -1 and record_of(done).operations[0].start == "random"


class Halved(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(8, 8), nn.Identity(), nn.Linear(8, 8).bfloat16()

    def forward(self, x):
        return self.three(self.two(self.one(x).bfloat16()))


def test_a_map_has_the_dtype_of_what_it_maps():
    model, _ = inserted(insertion("before", "two", start="random"), model=Halved().eval())
    expected = model(X)
    assert near(ksurgeon.revert(model)(X), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model, _ = inserted(insertion("after", "0", start="random"))
    assert model[0].kafter0.matrix.factors[0].dtype == torch.float32
    spectrum = nn.Sequential(nn.Linear(8, 8), Spectrum(), nn.Linear(5, 8))
    with pytest.raises(MatchError, match="complex64"):
        inserted(insertion("before", "1.inner", dim=1), model=spectrum)


class Spectrum(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x):
        return self.inner(torch.fft.rfft(x)).abs()
