"""Every small model through everything a converted model owes: models × what is done with them."""

import copy
import pickle

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import KChannelShuffle, KLinear, KPointwiseConv
from ksurgeon.rules.schema import Replacement, Rule
from tests import zoo
from tests.export import dynamic_batch
from tests.near import near

K_MODULES = (KChannelShuffle, KLinear, KPointwiseConv)

EVERYTHING = Rule(
    name="everything",
    replace=(
        Replacement(find="channel_shuffle", structure={"structure": "kaleidoscope"}, start="exact"),
        Replacement(find="linear", structure={"structure": "kaleidoscope"}, start="orthogonal"),
        Replacement(find="pointwise_conv", structure={"structure": "kaleidoscope"}, start="fit"),
    ),
)
COUNTS = {
    "mlp": 3,
    "convnet": 4,
    "encoder": 9,
    "shufflenet_v1_g3": 13,
    "shufflenet_v1_g4": 13,
    "shufflenet_v1_g8": 10,
}
MODELS = sorted(COUNTS)
OF_EACH_KIND = [name for name in MODELS if name not in ("shufflenet_v1_g3", "shufflenet_v1_g8")]


def k_modules(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, K_MODULES)]


def converted(name: str) -> nn.Module:
    model = getattr(zoo, name)()
    return ksurgeon.replace_modules(model, EVERYTHING, zoo.example(name), source=f"tests.zoo:{name}").eval()


@pytest.mark.parametrize("name", MODELS)
def test_forward_and_classes(name):
    model = converted(name)
    assert len(k_modules(model)) == COUNTS[name]
    assert isinstance(model, type(getattr(zoo, name)()))
    x = zoo.example(name)
    y = model(x)
    assert y.isfinite().all()
    torch.testing.assert_close(model(torch.cat([x, x, x]))[-len(x) :], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_training_moves_every_factor(name):
    model = converted(name).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(zoo.example(name)).square().mean().backward()
    optimiser.step()
    factors = [n for n, _ in model.named_parameters() if "factors" in n]
    assert factors
    still = [n for n, p in model.named_parameters() if n in factors and torch.equal(p, before[n])]
    assert still == []


@pytest.mark.parametrize("name", MODELS)
def test_save_and_load(name, tmp_path):
    model = converted(name)
    ksurgeon.save(model, tmp_path / "model")
    loaded = ksurgeon.load(tmp_path / "model", trust_remote_code=True)
    x = zoo.example(name)
    assert near(loaded(x), model(x))
    assert list(loaded.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_revert_computes_the_same(name):
    model = converted(name)
    with torch.no_grad():
        for module in k_modules(model):
            for factor in module.matrix.factors:
                factor.add_(0.01 * torch.randn(factor.shape, generator=torch.Generator().manual_seed(2)))
    x = zoo.example(name)
    expected = model(x)
    ksurgeon.revert(model)
    assert k_modules(model) == []
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OF_EACH_KIND)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_independent(name, copied):
    model = converted(name)
    other = copied(model)
    x = zoo.example(name)
    expected = model(x)
    assert near(other(x), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert near(model(x), expected)


@pytest.mark.parametrize("name", OF_EACH_KIND)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(name, dtype):
    model = converted(name).to(dtype)
    y = model(zoo.example(name, dtype))
    assert y.dtype == dtype and y.isfinite().all()


@pytest.mark.parametrize("name", ["mlp", "convnet", "shufflenet_v1_g4"])
def test_compile_without_graph_breaks(name):
    model = converted(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = zoo.example(name)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "convnet", "shufflenet_v1_g4"])
def test_export_with_a_dynamic_batch(name):
    model = converted(name)
    x = zoo.example(name)
    program = torch.export.export(model, (x,), dynamic_shapes=dynamic_batch())
    other = torch.cat([x, x, x]) if dynamic_batch() else -x
    torch.testing.assert_close(program.module()(other), model(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_autocast_gives_what_autocast_gives(name):
    original, model = getattr(zoo, name)().eval(), converted(name)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(zoo.example(name)).dtype == original(zoo.example(name)).dtype


def test_the_fast_path_of_the_encoder_gives_the_same():
    model, x = converted("encoder"), zoo.example("encoder")
    with torch.no_grad():
        fast = model(x)
    torch.testing.assert_close(fast, model(x), rtol=1e-4, atol=1e-5)


def test_every_module_hands_over_what_it_had():
    model = zoo.mlp().eval()
    seen = []
    model.up.register_forward_hook(lambda m, a, y: seen.append(type(m)))
    model.up.weight.requires_grad_(False)
    bias = model.up.bias
    ksurgeon.replace_modules(model, EVERYTHING, zoo.example("mlp"))
    seen.clear()
    model(zoo.example("mlp"))
    assert seen == [KLinear]
    assert model.up.bias is bias and not model.up.training
    assert not any(factor.requires_grad for factor in model.up.matrix.factors)
    assert (model.up.in_features, model.up.out_features, tuple(model.up.weight.shape)) == (64, 256, (256, 64))


def test_a_module_used_twice_is_replaced_once():
    layer = nn.Linear(64, 64)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Flatten())
    ksurgeon.replace_modules(model, EVERYTHING, torch.randn(2, 64))
    assert isinstance(model[0], KLinear) and model[0] is model[2]


def test_a_second_conversion_goes_on_from_the_first(tmp_path):
    x = zoo.example("shufflenet_v1_g4")
    model = ksurgeon.replace_modules(
        zoo.shufflenet_v1_g4().eval(), "shuffle", x, source="tests.zoo:shufflenet_v1_g4"
    )
    ksurgeon.replace_modules(model, EVERYTHING, x)
    assert len(k_modules(model)) == COUNTS["shufflenet_v1_g4"]
    ksurgeon.save(model, tmp_path / "model")
    assert near(ksurgeon.load(tmp_path / "model", trust_remote_code=True)(x), model(x))


def test_undone_puts_the_original_back_for_a_while():
    model, x = zoo.shufflenet_v1_g4().eval(), zoo.example("shufflenet_v1_g4")
    expected, classes = model(x), [type(m) for m in model.modules()]
    conversion = ksurgeon.convert(model, EVERYTHING, x)
    changed = model(x)
    with conversion.undone():
        assert near(model(x), expected)
        assert [type(m) for m in model.modules()] == classes
    assert near(model(x), changed)
