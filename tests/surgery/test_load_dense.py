"""Dense checkpoints in converted models: fitted where a K-matrix stands, loaded everywhere else."""

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import Rule, SurgeryError, WeightsError
from tests import zoo

DENSE = {"structure": "dense"}
EXACT = Rule(
    name="exact",
    replace=[
        {"find": "linear", "with": DENSE, "start": "exact"},
        {"find": "pointwise_conv", "with": DENSE, "start": "exact"},
        {"find": "channel_shuffle", "with": {"structure": "kaleidoscope"}},
    ],
)


class Odd(nn.Module):
    """Layers of every layout: grouped, transposed, fused, and a parameter without a layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 12, 1, groups=2)
        self.back = nn.ConvTranspose2d(12, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5, bias=False)

    def forward(self, x):
        x = self.norm(self.back(self.conv(x))).flatten(2).transpose(1, 2)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("make, x", [
    (Odd, torch.randn(2, 8, 3, 3)),
    (zoo.shufflenet_v1_g4, zoo.example("shufflenet_v1_g4")),
])  # fmt: skip
def test_other_weights_give_the_other_model(make, x):
    torch.manual_seed(0)
    first = make().eval()
    torch.manual_seed(1)
    second = make().eval()
    ksurgeon.convert(first, EXACT, x)
    errors = ksurgeon.load_dense(first, second.state_dict())
    assert errors and set(errors.values()) == {0.0}
    torch.testing.assert_close(first(x), second(x))


def test_a_fit_is_that_of_convert():
    torch.manual_seed(0)
    first, second = zoo.mlp(), zoo.mlp()
    x = zoo.example("mlp")
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.normal_()
    state = second.state_dict()
    ksurgeon.convert(first, "linear", x)
    ksurgeon.convert(second, "linear", x)
    seen = []
    ksurgeon.load_dense(first, state, progress=lambda *step: seen.append(step))
    torch.testing.assert_close(first(x), second(x))
    assert seen[-1][0] == seen[-1][1] > 0


@pytest.mark.parametrize("change, message", [
    (lambda state: state.pop("head.weight"), "head.weight is missing"),
    (lambda state: state.update(extra=torch.zeros(1)), "extra is not part"),
    (lambda state: state.update({"head.weight": torch.zeros(2, 2)}), r"instead of \(5, 8\)"),
    (lambda state: state["conv.weight"].fill_(torch.nan), "conv.weight has entries"),
])  # fmt: skip
def test_wrong_weights_change_nothing(change, message):
    model = Odd().eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ksurgeon.convert(model, EXACT, torch.randn(2, 8, 3, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(state)
    with pytest.raises(WeightsError, match=message):
        ksurgeon.load_dense(model, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_was_not_converted():
    with pytest.raises(SurgeryError, match="load_state_dict"):
        ksurgeon.load_dense(Odd(), {})
