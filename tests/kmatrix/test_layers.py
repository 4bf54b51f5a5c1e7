"""KLinear, KPointwiseConv and KChannelShuffle beside the layers whose place they take."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ksurgeon import KChannelShuffle, KLinear, KPointwiseConv, StructureError
from ksurgeon.kmatrix.matrix import KMatrix

CONVOLUTIONS = [
    {},
    {"stride": 2},
    {"stride": (2, 1), "groups": 2},
    {"groups": 3, "bias": False},
    {"width": 2, "expansion": 2},
    {"radix": 2},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("kind", ["contiguous", "channels last", "unbatched", "sliced", "empty"])
def test_pointwise_convolution(options, kind):
    layer = KPointwiseConv(12, 18, dtype=torch.float64, **options)
    x = torch.randn(2, 12, 7, 5, dtype=torch.float64)
    x = {
        "contiguous": lambda: x,
        "channels last": lambda: x.to(memory_format=torch.channels_last),
        "unbatched": lambda: x[0],
        "sliced": lambda: torch.randn(2, 12, 9, 10, dtype=torch.float64)[:, :, 2:, ::2],
        "empty": lambda: x[:0],
    }[kind]()
    expected = F.conv2d(x, layer.weight, layer.bias, layer.stride, groups=layer.groups)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    if kind in ("contiguous", "channels last"):
        assert y.stride() == expected.stride()


@pytest.mark.parametrize(
    "layer", [KPointwiseConv(12, 18), KChannelShuffle(12, 3)], ids=lambda layer: type(layer).__name__
)
def test_images_that_are_not_contiguous_under_vmap(layer):
    x = torch.randn(3, 2, 5, 4, 12).permute(0, 1, 4, 3, 2)
    want = torch.stack([layer(images) for images in x])
    assert torch.allclose(torch.vmap(layer)(x), want, atol=1e-5)
    _, aux = torch.func.grad(lambda y: ((z := layer(y)).sum(), z), has_aux=True)(x[0])
    assert aux.stride() == layer(x[0]).stride()


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_spatial_dimensions(dims):
    layer = KPointwiseConv(6, 8, dims=dims)
    conv = [F.conv1d, F.conv2d, F.conv3d][dims - 1]
    x = torch.randn(2, 6, *(3, 4, 5)[:dims])
    torch.testing.assert_close(layer(x), conv(x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 4}, "1, 2 or 3"),
        ({"stride": 0}, "at least 1"),
        ({"stride": (1, 2, 3)}, "2 numbers"),
        ({"groups": 5}, "divide"),
    ],
)
def test_convolutions_that_cannot_be(options, message):
    with pytest.raises(StructureError, match=message):
        KPointwiseConv(12, 18, **options)


@pytest.mark.parametrize("shape", [(12,), (2, 12), (2, 12, 3, 3, 3), (2, 11, 3, 3)])
def test_inputs_that_do_not_fit_a_convolution(shape):
    with pytest.raises(ValueError, match="expected"):
        KPointwiseConv(12, 18)(torch.randn(shape))


@pytest.mark.parametrize("shape", [(5, 10), (10,), (2, 3, 10), (0, 10), (2, 0, 10)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape, bias):
    layer = KLinear(10, 30, bias)
    x = torch.randn(shape)
    y = layer(x)
    torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias))
    assert y.is_contiguous()
    assert tuple(layer.weight.shape) == (30, 10) and layer.weight.requires_grad


def test_weight_is_differentiable_and_fresh():
    layer = KLinear(6, 6)
    layer.weight.sum().backward()
    assert all(factor.grad is not None for factor in layer.matrix.factors)
    before = layer.weight.clone()
    with torch.no_grad():
        layer.matrix.factors[0].zero_()
    assert not torch.equal(layer.weight, before) and not layer.weight.any()


@pytest.mark.parametrize("transposed", [False, True])
def test_looking_at_a_weight_does_not_multiply_it_out(monkeypatch, transposed):
    layer = KLinear(10, 30, dtype=torch.float64, transposed=transposed)
    with torch.no_grad():
        with monkeypatch.context() as patched:
            patched.setattr(KMatrix, "to_dense", lambda *_: pytest.fail("multiplied out"))
            weight = layer.weight
            assert isinstance(weight, torch.Tensor) and weight.dtype == torch.float64
            assert weight.shape == ((10, 30) if transposed else (30, 10)) and weight.dim() == 2
            assert weight.device.type == "cpu" and weight.is_floating_point() and not weight.requires_grad
            assert weight.size(0) == len(weight)
        dense = layer.matrix.to_dense()
        assert torch.equal(weight, dense.T if transposed else dense)


def test_a_weight_is_a_tensor_like_any_other():
    layer = KLinear(10, 30)
    with torch.no_grad():
        dense, weight = layer.matrix.to_dense(), layer.weight
        assert torch.equal(copy.deepcopy(weight), dense) and torch.equal(weight.data, dense)
        assert (weight.numpy() == dense.numpy()).all() and weight.T.shape == (10, 30)
        assert weight.to(torch.bfloat16).dtype == torch.bfloat16 and weight.is_contiguous()
        assert torch.equal(nn.Parameter(weight.clone()), dense) and repr(weight) == repr(dense)
        assert weight.data_ptr() == weight.data_ptr()
        other = nn.Linear(10, 30)
        other.weight.data = layer.weight  # past PyTorch's ways: not a number rather than something wrong
        assert other.weight.isnan().all()
    x = torch.randn(3, 10)
    compiled = torch.compile(lambda x: F.linear(x, layer.weight), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), F.linear(x, dense))
    kept = layer.weight.detach()
    own = nn.Parameter(layer.weight.clone())
    assert type(own) is nn.Parameter and torch.equal(kept, layer.weight)


def test_gradients_reach_the_factors_whatever_reads_the_weight():
    layer, x = KLinear(10, 30), torch.randn(3, 10)
    checkpoint(F.linear, x, layer.weight, use_reentrant=True).sum().backward()
    assert all(factor.grad is not None for factor in layer.matrix.factors)


def test_a_weight_read_in_a_transformed_call_is_of_its_own_factors():
    layers = [KLinear(6, 6, bias=False) for _ in range(2)]
    stacked, _ = torch.func.stack_module_state(layers)

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layers[0]

        def forward(self):
            return self.layer.weight

    def read(parameters):
        return torch.func.functional_call(Reads(), {f"layer.{k}": v for k, v in parameters.items()}, ())

    with torch.no_grad():
        weights = torch.vmap(read)(stacked)
        for weight, layer in zip(weights, layers, strict=True):
            torch.testing.assert_close(weight, layer.matrix.to_dense())


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("dim", [1, -1])
def test_shuffle(groups, dim):
    x = torch.randn(2, 12, 12)
    expected = torch.channel_shuffle(x.movedim(dim, 1), groups).movedim(1, dim)
    assert torch.equal(KChannelShuffle(12, groups, dim)(x), expected)


def test_shuffle_groups_must_divide():
    with pytest.raises(StructureError, match="5 groups do not divide 12"):
        KChannelShuffle(12, 5)


def test_meta_device():
    for module, sizes in ((KLinear, (8, 8)), (KPointwiseConv, (8, 8)), (KChannelShuffle, (8, 2))):
        assert all(p.is_meta for p in module(*sizes, device="meta").parameters())


def test_the_fast_path_of_an_attention_layer_reads_the_weight():
    attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    attention.out_proj = KLinear(16, 16)
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        fast = attention(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(fast, attention(x, x, x)[0])
