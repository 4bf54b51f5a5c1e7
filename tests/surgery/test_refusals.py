"""What is refused leaves the model as it was."""

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import InputError, MatchError, PlanError, RuleError, SurgeryError, WeightsError
from ksurgeon.find import Finder
from ksurgeon.rules.load import load_rule
from ksurgeon.rules.plan import make_plan
from tests import zoo


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
    from ksurgeon.surgery import convert

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "output_change", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ksurgeon.convert(model, "shuffle", X)


def test_a_swap_that_is_not_exact_is_undone(model, unchanged, monkeypatch):
    from ksurgeon.kmatrix import permutation

    right = permutation.permutation_
    monkeypatch.setattr(permutation, "permutation_", lambda matrix, index: right(matrix, index.flip(0)))
    with pytest.raises(SurgeryError, match="restored"):
        ksurgeon.convert(model, "shuffle", X)


def test_saving_a_model_that_was_not_converted(model, unchanged, tmp_path):
    with pytest.raises(SurgeryError, match="no record"):
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
    assert torch.equal(model(x), expected)


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
