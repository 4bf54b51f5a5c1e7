"""Conversions fitted to data, front to back."""

import copy

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon.errors import SurgeryError
from ksurgeon.rules.schema import Rule
from tests import zoo
from tests.near import near


def rule(find="linear", **structure):
    part = {"find": find, "with": {"structure": "low_rank", **structure}, "start": "fit"}
    return Rule.model_validate({"schema": 1, "name": "test", "summary": "A test.", "replace": [part]})


def deep(width=32, depth=6):
    """Residual blocks whose inputs live in few directions and have a mean, as in trained networks."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

        def forward(self, x):
            return nn.functional.layer_norm(x + self.down(torch.relu(self.up(x))), (width,))

    return nn.Sequential(*(Block() for _ in range(depth))).eval()


def data(width=32, number=8):
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(width, width, generator=generator) * torch.logspace(0, -2, width)[:, None]
    return [torch.randn(256, width, generator=generator) @ mix + 0.5 for _ in range(number)]


def change_after(model, held_out, rule, **options):
    copied = copy.deepcopy(model)
    with torch.no_grad():
        before = model(held_out)
        ksurgeon.convert(copied, rule, held_out, **options)
        return float((copied(held_out) - before).norm() / before.norm())


def test_a_fit_to_the_inputs_makes_the_outputs_nearer():
    model, (*fitted, held_out) = deep(depth=3), data()
    plain = change_after(model, held_out, rule(share=0.5))
    assert change_after(model, held_out, rule(share=0.5), data=fitted, compensate=False) < 0.9 * plain


def test_inputs_that_hardly_vary_keep_what_varies():
    """Their squares are beyond what float32 holds beside what varies in them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 8)).eval()
    directions = 1e-2 * torch.randn(3, 32)
    batches = [1000 + torch.randn(64, 3) @ directions for _ in range(4)]
    x = torch.cat(batches)
    with torch.no_grad():
        before = model.double()(x.double())
        ksurgeon.convert(model.float(), rule(rank=3), x, data=batches)
        change = model.double()(x.double()) - before
    assert float(change.norm()) < 0.05 * float((before - before.mean(0)).norm())


@pytest.mark.parametrize("value", [0.0, 3.7])
def test_constant_inputs_are_no_error(value):
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8)).eval()
    batches = [torch.full((8, 16), value)] * 3
    before = model(batches[0])
    ksurgeon.convert(model, rule(share=0.5), batches[0], data=batches)
    assert near(model(batches[0]), before)


def test_a_later_layer_makes_up_for_an_earlier_one():
    torch.manual_seed(0)
    model, (*fitted, held_out) = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)).eval(), data()
    first = {"find": "linear", "targets": ["0"], "with": {"structure": "monarch"}, "start": "fit"}
    second = {"find": "linear", "with": {"structure": "low_rank", "rank": 15}, "start": "fit"}
    both = Rule.model_validate(
        {"schema": 1, "name": "test", "summary": "A test.", "replace": [first, second]}
    )
    alone = change_after(model, held_out, both, data=fitted, compensate=False)
    assert change_after(model, held_out, both, data=fitted) < 0.8 * alone


def test_the_original_keeps_its_bias_and_the_conversion_can_be_undone_saved_and_reverted(tmp_path):
    model, batches = deep(depth=2), data()
    with torch.no_grad():
        before = model(batches[0])
    bias = model[0].up.bias
    conversion = ksurgeon.convert(
        model, rule(share=0.5), batches[0], data=batches, source="tests.surgery.test_compensate:small"
    )
    with torch.no_grad():
        after = model(batches[0])
        assert model[0].up.bias is not bias and not torch.equal(model[0].up.bias, bias)
        with conversion.undone():
            assert model[0].up.bias is bias and near(model(batches[0]), before)
        assert [result.path for result in conversion.results] == [s.path for s in conversion.sites]
        ksurgeon.save(model, tmp_path / "saved")
        torch.testing.assert_close(
            ksurgeon.load(tmp_path / "saved", trust_remote_code=True)(batches[0]), after
        )
        torch.testing.assert_close(ksurgeon.revert(model)(batches[0]), after, rtol=1e-4, atol=1e-5)


def small():
    return deep(depth=2)


@pytest.mark.parametrize(
    ("name", "find", "structure"),
    [
        ("mlp", "linear", {"rank": 8}),
        ("encoder", "linear", {"rank": 8}),  # read by its parent: fitted to the original's inputs
        ("attention", "linear", {"share": 0.5}),
        ("raw", "linear", {"rank": 3}),
        ("convnet", "pointwise_conv", {"rank": 8}),
        ("convolutions", "pointwise_conv", {"rank": 1}),
        ("mlp", "linear", {"structure": "monarch", "blocks": 4}),
        ("mlp", "linear", {"structure": "kaleidoscope+low_rank", "share": 0.6}),
    ],
)
def test_sites_of_every_form(name, find, structure):
    torch.manual_seed(0)
    model = getattr(zoo, name)().eval()
    batches = [torch.randn(zoo.INPUTS[name]) for _ in range(3)]
    conversion = ksurgeon.convert(model, rule(find, **structure), batches[0], data=batches)
    assert conversion.results and 0 < conversion.output_change < 1


def test_an_interrupted_conversion_leaves_the_model_as_it_was():
    model, batches = deep(depth=2), data()
    before = dict(model.named_modules())

    def stop(done, total, path):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ksurgeon.convert(model, rule(share=0.5), batches[0], data=batches, progress=stop)
    assert dict(model.named_modules()) == before
    assert not torch.nn.modules.module._has_any_global_hook()


class Chooses(nn.Module):
    """Its layers depend on the data, and change with the first one."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        y = self.first(x)
        return self.a(y) if (y.norm() > x.norm()) else self.b(y)


def test_a_way_that_changes_is_refused_with_what_to_do():
    torch.manual_seed(0)
    model = Chooses().eval()
    with torch.no_grad():
        model.first.weight.copy_(1.01 * torch.eye(16))
        model.first.bias.zero_()
    batches = [torch.randn(8, 16) for _ in range(3)]
    with pytest.raises(SurgeryError, match="without error propagation"):
        ksurgeon.convert(model, rule(rank=2), batches[0], data=batches)
    assert type(model.first) is nn.Linear
    ksurgeon.convert(model, rule(rank=2), batches[0], data=batches, compensate=False)
