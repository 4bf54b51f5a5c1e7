"""Models whose outputs answer rounding by something else altogether, and mistakes that hide behind it."""

import pytest
import torch
from torch import Tensor, nn

from ksurgeon import SurgeryError
from ksurgeon.rules.schema import Replacement, Rule
from ksurgeon.surgery import carry_out as converting
from ksurgeon.surgery.convert import convert
from ksurgeon.surgery.verify import is_exact

EXACT = Rule(
    name="exact",
    replace=(
        Replacement.model_validate({"find": "linear", "with": {"structure": "dense"}, "start": "exact"}),
    ),
)
X = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))


class Wild(nn.Module):
    """Reads digits of its layer's output that rounding decides, and keeps what they pick or all of it."""

    def __init__(self, picks: bool) -> None:
        super().__init__()
        self.layer, self.picks = nn.Linear(256, 256), picks

    def forward(self, x: Tensor) -> Tensor:
        digits = torch.sin(1e7 * self.layer(x))
        return x[digits > 0] if self.picks else digits


@pytest.mark.parametrize("picks", [False, True])
def test_a_model_that_amplifies_rounding_is_converted_and_the_user_told(picks):
    torch.manual_seed(0)
    model = Wild(picks)
    conversion = convert(model, EXACT, X)
    assert conversion.output_change > 1e-4
    (warning,) = [text for text in conversion.record.warnings if "comparing numbers" in text]
    assert "cannot be" in warning
    assert conversion.record.outcome.output_change in (None, conversion.output_change)
    conversion.record.model_dump_json()


@pytest.mark.parametrize("picks", [False, True])
def test_a_wrong_replacement_is_not_taken_for_rounding(picks, monkeypatch):
    build = converting.build_replacements

    def wrong(*arguments, **options):
        built = build(*arguments, **options)
        with torch.no_grad():
            built[0].module.matrix.factors[0] *= 1.01
        return built

    monkeypatch.setattr(converting, "build_replacements", wrong)
    model = Wild(picks)
    layer = model.layer
    with pytest.raises(SurgeryError, match="restored"):
        convert(model, EXACT, X)
    assert model.layer is layer and not layer._forward_hooks


def test_numbers_of_classes_do_not_loosen_what_is_exact():
    numbers, half = torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.bfloat16)
    assert is_exact(0.0, [numbers]) and not is_exact(1e-3, [X, numbers])
    assert is_exact(1e-3, [X, half])
