"""What is refused leaves the model as it was."""

import warnings

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import InputError, MatchError, PlanError, RuleError, SurgeryError, WeightsError
from ksurgeon.find import Finder
from ksurgeon.rules.load import load_rule
from ksurgeon.rules.plan import make_plan
from tests import zoo
from tests.near import near


@pytest.fixture
def model():
    return zoo.shufflenet_v1_g4()


@pytest.fixture
def unchanged(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = list(model.named_modules())
    classes = [type(module) for module in model.modules()]
    yield
    assert list(model.named_modules()) == modules
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(t, state[n]) or t.isnan().any() for n, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(module.training for module in model.modules())
    assert "_ksurgeon_record" not in vars(model)


X = zoo.example("shufflenet_v1_g4")


def test_unknown_rule(model, unchanged):
    with pytest.raises(RuleError, match="shuffle"):
        ksurgeon.convert(model, "shufle", X)


def test_inputs_of_a_wrong_shape(model, unchanged):
    with pytest.raises(InputError, match=r"\(2, 4, 32, 32\)"):
        ksurgeon.convert(model, "shuffle", torch.randn(2, 4, 32, 32))


def test_inputs_that_are_none(model, unchanged):
    with pytest.raises(InputError, match="got str"):
        ksurgeon.convert(model, "shuffle", "an image")


def test_a_rule_that_matches_nothing_says_which_would():
    model = zoo.mlp()
    with pytest.raises(MatchError, match='"linear"') as caught:
        ksurgeon.convert(model, "shuffle", zoo.example("mlp"))
    assert caught.value.exit_status == 3


def test_weights_that_are_not_finite(model, unchanged):
    with torch.no_grad():
        model.units[1].compress.weight[0, 0] = float("nan")
    with pytest.raises(WeightsError, match=r"units\.1\.compress"):
        ksurgeon.convert(model, "pointwise", X)


def test_a_plan_of_another_model(model, unchanged):
    other = Finder(zoo.mlp(), zoo.example("mlp")).sites
    plan = make_plan(other, load_rule("linear"))
    with pytest.raises(PlanError, match="has no such linear site"):
        ksurgeon.convert(model, plan=plan, example_inputs=X)


def test_an_interrupt_while_fitting(model, unchanged):
    def interrupt(done, total, path):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ksurgeon.convert(model, "shuffle", X, progress=interrupt)


def test_an_interrupt_while_verifying(model, unchanged, monkeypatch):
    from ksurgeon.surgery import carry_out

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(carry_out, "output_change", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ksurgeon.convert(model, "shuffle", X)


def test_a_swap_that_is_not_exact_is_undone(model, unchanged, monkeypatch):
    from ksurgeon.kmatrix import shuffle

    right = shuffle.permutation_
    monkeypatch.setattr(shuffle, "permutation_", lambda matrix, index: right(matrix, index.flip(0)))
    with pytest.raises(SurgeryError, match="restored"):
        ksurgeon.convert(model, "shuffle", X)


def test_saving_a_model_that_was_not_converted(model, unchanged, tmp_path):
    with pytest.raises(SurgeryError, match="was not converted"):
        ksurgeon.save(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_random_state_is_left_alone(model):
    state = torch.random.get_rng_state()
    ksurgeon.convert(model, "shuffle", X)
    assert torch.equal(torch.random.get_rng_state(), state)


class OfTwoSizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.layer = nn.ChannelShuffle(3), nn.Conv2d(12, 12, 1)

    def forward(self, x):
        x = self.mix(self.layer(x))
        return self.mix(x.repeat(1, 2, 1, 1))


def test_a_shuffle_of_two_sizes_is_refused_and_restored():
    model, x = OfTwoSizes(), torch.randn(2, 12, 4, 4)
    expected = model(x)
    with pytest.raises(SurgeryError, match="several shapes"):
        ksurgeon.convert(model, "shuffle", x)
    assert near(model(x), expected)


class Choosing(nn.Module):
    """Shuffles in one call, and not in the other."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 1)

    def forward(self, x, mix=True):
        x = self.conv(x)
        return torch.channel_shuffle(x, 3) if mix else x * 2


class CalledTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Choosing()

    def forward(self, x):
        return self.inner(self.inner(x), mix=False)


def test_an_owner_called_twice_with_other_arguments_is_left_and_the_rest_converted():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.mix = CalledTwice(), nn.ChannelShuffle(3)

        def forward(self, x):
            return self.mix(self.twice(x))

    model, x = Both().eval(), torch.randn(2, 12, 4, 4)
    expected = model(x)
    conversion = ksurgeon.convert(model, "shuffle", x)
    assert [result.path for result in conversion.results] == ["mix"]
    (left,) = [site for site in conversion.sites if site.reason]
    assert left.path.startswith("twice.inner:") and "called several times" in left.reason
    torch.testing.assert_close(model(x), expected)


def test_an_owner_called_with_other_shapes_is_converted():
    class Shapes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Choosing()

        def forward(self, x):
            return self.inner(x).mean() + self.inner(x[..., :2]).mean()

    model, x = Shapes().eval(), torch.randn(2, 12, 4, 4)
    expected = model(x)
    assert len(ksurgeon.convert(model, "shuffle", x).results) == 1
    torch.testing.assert_close(model(x), expected)


class TakesOneMapping(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 64)

    def forward(self, batch):
        return self.a(batch["x"])


def on_meta():
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(8, 8))


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(nn.Linear(8, 8)))


@pytest.mark.parametrize(
    ("make", "inputs", "message"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(8)), torch.ones(2, 8), r"0\.weight, 0\.bias: .* run it once"),
        (on_meta, torch.ones(2, 8, device="meta"), r"0\.weight is on the meta device .* load"),
        (scripted, torch.ones(2, 8), r"torch\.jit"),
        (TakesOneMapping, {"x": torch.ones(2, 64)}, r"keyword arguments, here x; .*\(mapping,\)"),
    ],
    ids=["lazy", "meta", "script", "one_mapping"],
)
def test_models_and_inputs_that_cannot_work_are_told_what_to_do(make, inputs, message):
    with pytest.raises(InputError, match=message):
        ksurgeon.convert(make(), "linear", inputs)


def test_one_mapping_in_a_tuple_is_a_positional_argument():
    assert ksurgeon.convert(TakesOneMapping(), "linear", ({"x": torch.ones(2, 64)},)).results


def test_a_map_in_the_code_of_a_graph_is_left():
    model = torch.fx.symbolic_trace(zoo.shufflenet_v1_g4().eval())
    shuffles = [site for site in ksurgeon.find(model, X) if site.kind == "channel_shuffle"]
    assert shuffles and all("before it is traced" in site.reason for site in shuffles)


def test_a_target_that_matches_nothing_is_told_of_beside_others_that_do():
    rule = load_rule("linear").model_dump(mode="json")
    rule["replace"][0]["targets"] = ["0", "gate_proj"]
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    with pytest.warns(UserWarning, match='"gate_proj" matches nothing'):
        conversion = ksurgeon.convert(model, ksurgeon.Rule.model_validate(rule), torch.ones(2, 64))
    assert [result.path for result in conversion.results] == ["0"]
    assert any("gate_proj" in line for line in conversion.record.outcome.parts)


def test_torchscript_is_refused_with_what_to_do_instead():
    model = nn.Sequential(nn.Linear(64, 64))
    ksurgeon.convert(model, "linear", torch.ones(2, 64))
    with warnings.catch_warnings(), pytest.raises(ksurgeon.ExportError, match="export_model"):
        warnings.simplefilter("ignore")
        torch.jit.script(model)


def test_a_scalar_is_no_input_of_a_layer():
    with pytest.raises(ValueError, match=r"expected 8 entries .* shape \(\)"):
        ksurgeon.KLinear(8, 8)(torch.tensor(1.0))
