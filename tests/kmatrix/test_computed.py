"""The weight that K-layers compute can be read like any other, and is not to be written to."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune

import ksurgeon
from ksurgeon import KLinear, SurgeryError
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.shuffle import KChannelShuffle
from ksurgeon.rules.schema import Replacement, Rule

LAYERS = {
    "linear": lambda: KLinear(16, 12),
    "parts": lambda: KLinear(16, 48, parts=3),
    "transposed": lambda: KLinear(16, 12, transposed=True),
    "conv": lambda: KPointwiseConv(16, 12, groups=2),
    "transposed conv": lambda: KPointwiseConv(16, 12, groups=2, transposed=True),
    "shuffle": lambda: KChannelShuffle(16, 4),
}


def _in_place(weight):
    weight += 1


WRITES = {
    "init.zeros_": lambda w: nn.init.zeros_(w),
    "init.orthogonal_": lambda w: nn.init.orthogonal_(w.flatten(1)),
    "data.copy_": lambda w: w.data.copy_(torch.zeros(w.shape)),
    "data": lambda w: setattr(w, "data", torch.zeros(w.shape)),
    "row": lambda w: w.__setitem__(0, 0),
    "row of data": lambda w: w.data.__setitem__(0, 0),
    "view": lambda w: w.transpose(0, 1)[0].zero_(),
    "detach": lambda w: w.detach().mul_(2),
    "out": lambda w: torch.mul(w.detach(), 2, out=w.detach()),
    "inplace": lambda w: nn.functional.relu(w, inplace=True),
    "foreach": lambda w: torch._foreach_mul_([w], 2),
    "+=": _in_place,
    "part": lambda w: w.chunk(2)[0].zero_(),
    "requires_grad_": lambda w: w.requires_grad_(False),
    "requires_grad": lambda w: setattr(w, "requires_grad", False),
    "grad": lambda w: setattr(w, "grad", None),
    "Parameter": lambda w: nn.Parameter(w),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("grad", [True, False])
def test_writes_are_refused(write, grad):
    for make in LAYERS.values():
        layer = make()
        before = layer.weight.clone()
        with torch.set_grad_enabled(grad), pytest.raises(SurgeryError, match=r"would be lost.*load_dense"):
            WRITES[write](layer.weight)
        assert torch.equal(layer.weight, before)


def test_what_numpy_shares_is_read_only():
    with pytest.raises(ValueError, match="read-only"):
        KLinear(8, 8).weight.detach().numpy()[0] = 0


@pytest.mark.parametrize(
    "assign",
    [
        lambda m: setattr(m, "weight", nn.Parameter(torch.zeros(12, 16))),
        lambda m: setattr(m, "weight", torch.zeros(12, 16)),
        lambda m: setattr(m, "weight", None),
        lambda m: delattr(m, "weight"),
        lambda m: m.register_parameter("weight", None),
        lambda m: m.register_buffer("weight", torch.zeros(12, 16)),
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
    ],
)
def test_a_weight_cannot_be_assigned(assign):
    for make in LAYERS.values():
        layer = make()
        names = list(layer.state_dict())
        with pytest.raises(SurgeryError, match=r"weight of a K.* computed from factors.*load_dense"):
            assign(layer)
        assert list(layer.state_dict()) == names and not layer._forward_pre_hooks


@pytest.mark.parametrize("name", LAYERS)
def test_reading_it_gives_plain_tensors_and_gradients(name):
    layer = LAYERS[name]()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            weight = layer.weight
            assert weight.shape == layer.weight.clone().shape and weight.dtype == torch.float32
            for plain in (
                weight.clone(),
                weight * 1,
                weight.double(),
                weight.sum(),
                copy.copy(weight.tolist()),
            ):
                assert type(plain) in (torch.Tensor, list)
            own = nn.Parameter(weight.detach().clone())
            own.data.zero_()
            dense = torch.zeros(weight.shape)
            dense.data = weight.data
            assert torch.equal(torch.stack([weight, weight])[0], weight)
    layer.weight.square().sum().backward()
    assert all(factor.grad is not None for factor in layer.matrix.factors)


def test_a_parameter_that_a_child_makes():
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    attention.in_proj_weight.no_decay = True
    model, x = nn.ModuleDict({"attn": attention}), torch.randn(2, 3, 16)
    model.forward = lambda x: model["attn"](x, x, x, need_weights=False)[0]
    part = Replacement(find="linear", structure=ksurgeon.Kaleidoscope(), start="random")
    ksurgeon.convert(model, Rule(name="all", replace=(part,)), x)
    made = next(child for name, child in attention.named_children() if name == "k_in_proj_weight")
    assert all(factor.no_decay for factor in made.matrix.factors)
    y = model(x)
    for write in (
        lambda: nn.init.xavier_uniform_(attention.in_proj_weight),
        lambda: setattr(attention, "in_proj_weight", nn.Parameter(torch.zeros(48, 16))),
        lambda: delattr(attention, "in_proj_weight"),
    ):
        with pytest.raises(SurgeryError, match="load_dense"):
            write()
    torch.testing.assert_close(model(x), y)
    ksurgeon.revert(model)
    assert attention.in_proj_weight.no_decay and type(attention.in_proj_weight) is nn.Parameter
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
    nn.init.zeros_(attention.in_proj_weight)


def test_transforms_and_modes_take_a_weight_that_was_read_before():
    layer, x = KLinear(16, 16), torch.randn(3, 16)
    weight = layer.weight
    expected = x @ weight.detach().clone().T
    for take in (
        lambda: torch.vmap(lambda v: torch.nn.functional.linear(v, weight))(x),
        lambda: torch.func.jvp(lambda v: torch.nn.functional.linear(v, weight), (x,), (x,))[0],
        lambda: x @ weight.to_sparse().to_dense().T,
        lambda: make_fx(lambda v: torch.nn.functional.linear(v, layer.weight))(x)(x),
    ):
        torch.testing.assert_close(take(), expected)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert mode.from_tensor(weight).shape == (16, 16)
