"""Everything with a weight, taken over exactly and given back bit for bit."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon.find import Finder
from ksurgeon.rules.schema import Replacement, Rule
from tests import zoo
from tests.near import near

EXACT = Rule(
    name="exact",
    replace=tuple(
        Replacement(find=kind, structure={"structure": "dense"}, start="exact")
        for kind in ("linear", "pointwise_conv")
    ),
)
SITES = {
    "mlp": 3,
    "convnet": 4,
    "encoder": 9,
    "attention": 8,
    "raw": 6,
    "convolutions": 6,
    "gpt2": 8,
}
MODELS = sorted(SITES)


def run(model, x):
    with torch.no_grad():
        y = model(x)
    return getattr(y, "logits", y)


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def fresh(name):
    return getattr(zoo, name)().eval(), zoo.example(name)


def converted(name):
    model, x = fresh(name)
    return ksurgeon.replace_modules(model, EXACT, x, source=f"tests.zoo:{name}"), x


def test_every_weight_is_taken_over_exactly(name):
    model, x = fresh(name)
    expected = run(model, x)
    conversion = ksurgeon.convert(model, EXACT, x)
    assert len(conversion.results) == SITES[name]
    assert all(result.weight_error == 0 for result in conversion.results)
    torch.testing.assert_close(run(model, x), expected, rtol=1e-5, atol=1e-5)
    for result in conversion.results:
        assert model.get_submodule(result.path).matrix.structure.structure == "dense"


def test_revert_gives_back_the_bits_and_the_classes(name):
    model, x = fresh(name)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    classes, trained = [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    text = str(model)
    ksurgeon.replace_modules(model, EXACT, x)
    assert len(model.state_dict()) != 0 and str(model) != text
    ksurgeon.revert(model)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert [type(m) for m in model.modules()] == classes and str(model) == text
    assert [p.requires_grad for p in model.parameters()] == trained


def test_save_load_copy(name, tmp_path):
    model, x = converted(name)
    expected = run(model, x)
    ksurgeon.save(model, tmp_path / "model")
    others = [
        ksurgeon.load(tmp_path / "model", trust_remote_code=True),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ]
    for other in others:
        assert near(run(other, x), expected)
        assert list(other.state_dict()) == list(model.state_dict())
        original, _ = fresh(name)
        reverted = ksurgeon.revert(other).state_dict()
        assert all(torch.equal(reverted[key], tensor) for key, tensor in original.state_dict().items())


def test_every_factor_learns(name):
    model, x = converted(name)
    y = model.train()(x)
    getattr(y, "logits", y).square().sum().backward()
    factors = {n: p for n, p in model.named_parameters() if ".factors." in n}
    assert {
        n for n, p in factors.items() if p.requires_grad and (p.grad is None or not p.grad.any())
    } == set()
    assert {n for n, p in factors.items() if not p.requires_grad} == (
        {"k_frozen.matrix.factors.0"} if name == "raw" else set()
    )


def test_a_kaleidoscope_takes_the_same_places(name):
    model, x = fresh(name)
    kaleidoscope = {"structure": "kaleidoscope"}
    parts = tuple(
        Replacement(find=part.find, structure=kaleidoscope, start="orthogonal") for part in EXACT.replace
    )
    conversion = ksurgeon.convert(model, Rule(name="k", replace=parts), x)
    assert {result.site.path for result in conversion.results} <= {s.path for s in conversion.sites}
    assert run(model, x).isfinite().all()
    expected = run(model, x)
    torch.testing.assert_close(run(ksurgeon.revert(model), x), expected, rtol=1e-4, atol=1e-5)


def test_undone_puts_parameters_back(name):
    model, x = fresh(name)
    expected, keys = run(model, x), list(model.state_dict())
    conversion = ksurgeon.convert(model, EXACT, x)
    with conversion.undone():
        assert near(run(model, x), expected) and list(model.state_dict()) == keys
    assert list(model.state_dict()) != keys


def test_a_new_process_loads_the_same_model(tmp_path):
    model, x = converted("raw")
    ksurgeon.save(model, tmp_path / "model")
    torch.save((x, run(model, x)), tmp_path / "expected.pt")
    script = (
        "import sys, torch, ksurgeon\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "x, expected = torch.load(sys.argv[2])\n"
        "model = ksurgeon.load(sys.argv[1], trust_remote_code=True)\n"
        "with torch.no_grad():\n    torch.testing.assert_close(model(x), expected)\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "model", tmp_path / "expected.pt"], check=True)


def test_what_is_held_in_a_plain_list_is_refused():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.order = [self.a]

        def forward(self, x):
            return self.b(self.order[0](x))

    sites = {site.path: site for site in Finder(Listed(), torch.randn(2, 8)).sites}
    assert "Listed.order holds it too" in sites["a"].reason and sites["b"].reason is None


@pytest.mark.parametrize("structure", ["dense", "kaleidoscope"])
@pytest.mark.parametrize(("name", "path"), [("attention", "own.k_in_proj_weight"), ("raw", "qkv")])
def test_a_fused_projection_becomes_three_where_the_rule_says_so(name, path, structure, tmp_path):
    model, x = fresh(name)
    expected, state = run(model, x), model.state_dict()
    start = "exact" if structure == "dense" else "fit"
    part = Replacement(
        find="linear",
        targets=("re:own.*", "qkv"),
        structure={"structure": structure},
        start=start,
        split=True,
    )
    conversion = ksurgeon.convert(model, Rule(name="split", replace=(part,)), x, source=f"tests.zoo:{name}")
    fused = next(result for result in conversion.results if result.path == path)
    new = model.get_submodule(path)
    size = new.in_features
    assert new.parts == 3 and fused.parameters_after == sum(p.numel() for p in new.parameters())
    assert new.matrix.patterns[0].a % 3 == 0
    if structure == "dense":
        torch.testing.assert_close(run(model, x), expected, rtol=1e-5, atol=1e-5)
    assert new.weight.shape == (3 * size, size)
    ksurgeon.save(model, tmp_path / "model")
    loaded = ksurgeon.load(tmp_path / "model", trust_remote_code=True)
    assert near(run(loaded, x), run(model, x))
    reverted = ksurgeon.revert(loaded).state_dict()
    assert list(reverted) == list(state)
    if structure == "dense":
        assert all(torch.equal(reverted[key], tensor) for key, tensor in fresh(name)[0].state_dict().items())


class ShufflesAndMultiplies(nn.Module):
    """One forward with a shuffle and two parameters of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 1)
        self.first = nn.Parameter(torch.randn(12, 12) / 4)
        self.second = nn.Parameter(torch.randn(12, 6) / 4)

    def forward(self, x):
        y = torch.channel_shuffle(self.conv(x), 3)
        return nn.functional.linear(y.mean((2, 3)), self.first) @ self.second


@pytest.mark.parametrize("rules", [("both",), ("shuffle", EXACT)], ids=["at once", "one after the other"])
def test_a_forward_with_a_shuffle_and_parameters(rules, tmp_path):
    shuffle = Replacement(find="channel_shuffle", structure={"structure": "kaleidoscope"})
    both = Rule(name="both", replace=(shuffle, *EXACT.replace))
    torch.manual_seed(0)
    model, x = ShufflesAndMultiplies().eval(), torch.randn(2, 12, 3, 3)
    expected, state = run(model, x), {k: v.clone() for k, v in model.state_dict().items()}
    for rule in rules:
        ksurgeon.replace_modules(model, both if rule == "both" else rule, x)
    assert set(dict(model.named_children())) == {"conv", "kshuffle0", "k_first", "k_second"}
    torch.testing.assert_close(run(model, x), expected)
    ksurgeon.save(model, tmp_path / "model")
    loaded = ksurgeon.load(tmp_path / "model", ShufflesAndMultiplies())
    copied = pickle.loads(pickle.dumps(copy.deepcopy(loaded)))
    assert near(run(copied, x), run(model, x))
    for other in (model, loaded, copied):
        ksurgeon.revert(other)
        assert type(other) is ShufflesAndMultiplies and list(other.state_dict()) == list(state)
        assert all(torch.equal(tensor, state[key]) for key, tensor in other.state_dict().items())
