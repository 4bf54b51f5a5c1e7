import pytest
import torch
from transformers import FNetConfig, FNetModel

import ksurgeon
from ksurgeon.errors import RuleError, SurgeryError
from ksurgeon.kmatrix.transform import KTransform
from ksurgeon.rules.load import load_rule
from tests.find.transform_spellings import SPELLINGS
from tests.near import near


def fnet():
    torch.manual_seed(0)
    config = FNetConfig(
        hidden_size=48, num_hidden_layers=2, intermediate_size=32, vocab_size=50, max_position_embeddings=64,
        type_vocab_size=2,
    )  # fmt: skip
    return FNetModel(config).eval(), torch.randint(0, 50, (2, 13))


@pytest.mark.parametrize("network", SPELLINGS, ids=lambda c: c.__name__)
def test_every_spelling_is_replaced_exactly_saved_and_reverted(network, tmp_path):
    torch.manual_seed(0)
    model = network().eval()
    state = model.state_dict()
    x = model.example()
    expected = model(x)
    conversion = ksurgeon.convert(model, "transform", x)
    assert conversion.results[0].parameters_after == sum(
        p.numel() for m in model.modules() if isinstance(m, KTransform) for p in m.parameters()
    )
    actual = model(x)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)
    actual.abs().sum().backward()
    transform = next(m for m in model.modules() if isinstance(m, KTransform))
    assert all(factor.grad.abs().sum() > 0 for factor in transform.factors)
    ksurgeon.save(model, tmp_path / "model")
    fresh = network()
    fresh.load_state_dict(state)
    loaded = ksurgeon.load(tmp_path / "model", model=fresh)
    assert near(loaded(x), actual)
    ksurgeon.revert(loaded)
    assert type(loaded) is network
    assert near(loaded(x), expected)


def test_fnet():
    model, tokens = fnet()
    expected = model(tokens).last_hidden_state
    short = model(tokens[:, :7]).last_hidden_state
    conversion = ksurgeon.convert(model, "transform", tokens)
    assert len(conversion.results) == 2
    assert (model(tokens).last_hidden_state - expected).abs().max() < 1e-4
    assert (model(tokens[:, :7]).last_hidden_state - short).abs().max() < 1e-4
    layer = model.encoder.layer[0].fourier.self
    assert isinstance(layer.ktransform0, KTransform)
    assert type(layer).__name__ == "FNetBasicFourierTransform"


def test_fnet_learns_and_is_kept(tmp_path):
    model, tokens = fnet()
    ksurgeon.convert(model, "transform", tokens)
    transforms = [m for m in model.modules() if isinstance(m, KTransform)]
    optimiser = torch.optim.Adam([p for m in transforms for p in m.parameters()], lr=1e-2)
    target, losses = torch.randn(2, 13, 48), []
    for _ in range(20):
        loss = (model(tokens).last_hidden_state - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.98 * losses[0]
    with torch.no_grad():
        expected = model(tokens).last_hidden_state
    ksurgeon.save(model, tmp_path / "fnet")
    loaded = ksurgeon.load(tmp_path / "fnet")
    assert near(loaded(tokens).last_hidden_state, expected)
    with pytest.raises(SurgeryError, match="was trained"):
        ksurgeon.revert(loaded)
    assert near(loaded(tokens).last_hidden_state, expected)


def test_radices_can_be_chosen():
    model, tokens = fnet()
    rule = load_rule("transform").model_dump(by_alias=True)
    rule["replace"][0]["with"]["radix"] = 2
    with pytest.raises(ksurgeon.MatchError, match="multiply to it"):
        ksurgeon.convert(model, ksurgeon.Rule.model_validate(rule), tokens)
    rule["replace"][0]["with"]["radix"] = [3, 2, 8]
    ksurgeon.convert(model, ksurgeon.Rule.model_validate(rule), tokens)
    assert model.encoder.layer[0].fourier.self.ktransform0.radices == (3, 2, 8)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ('find = "transform"\nwith = { structure = "kaleidoscope" }', "goes with find"),
        ('find = "linear"\nwith = { structure = "butterfly" }', "goes with find"),
        ('find = "transform"\nwith = { structure = "butterfly" }\nstart = "fit"', "exact.*random"),
    ],
)
def test_rules_that_fit_no_transform(part, message, tmp_path):
    file = tmp_path / "rule.toml"
    file.write_text(f'schema = 1\nname = "rule"\n[[replace]]\n{part}\n')
    with pytest.raises(RuleError, match=message):
        load_rule(file)


def test_autocast_leaves_a_transform_exact():
    module, x = KTransform("dft", 48), torch.randn(2, 48)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(module(x), torch.fft.fft(x), atol=1e-4)
