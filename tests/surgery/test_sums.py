"""Low rank, Monarch, and sums of a chain and a low-rank path through everything a converted model owes."""

import copy
import itertools

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import KLinear, KPointwiseConv
from ksurgeon.kmatrix.structures import Kaleidoscope, LowRank, Monarch, Sum
from ksurgeon.rules.schema import Replacement, Rule
from tests import zoo
from tests.export import dynamic_batch
from tests.near import near

STRUCTURES = {
    "low rank": LowRank(share=0.5),
    "monarch": Monarch(blocks=2),
    "sum": Sum(Kaleidoscope(radix=2), rank=1),
    "monarch sum": Sum(Monarch(blocks=2, block_rank=1), share=0.6),
}
MODELS = {"mlp": 2, "convnet": 3, "encoder": 9}
CASES = list(itertools.product(MODELS, STRUCTURES))


def converted(name: str, structure: str, start: str = "random") -> nn.Module:
    parts = tuple(
        Replacement(
            find=kind,
            structure=STRUCTURES[structure],
            start=start,
            split=True,
            where={"out_features": "> 10"},
        )
        for kind in ("linear", "pointwise_conv")
    )
    rule = Rule(name="sums", replace=parts)
    model = getattr(zoo, name)()
    return ksurgeon.replace_modules(model, rule, zoo.example(name), source=f"tests.zoo:{name}").eval()


def k_modules(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (KLinear, KPointwiseConv))]


@pytest.mark.parametrize(("name", "structure"), CASES)
def test_save_load_copy_and_revert(name, structure, tmp_path):
    model = converted(name, structure)
    assert len(k_modules(model)) == MODELS[name]
    x = zoo.example(name)
    expected = model(x)
    assert expected.isfinite().all()
    ksurgeon.save(model, tmp_path / "model")
    loaded = ksurgeon.load(tmp_path / "model", trust_remote_code=True)
    assert near(loaded(x), expected) and near(copy.deepcopy(model)(x), expected)
    operation = ksurgeon.surgery.record.record_of(loaded).operations[0]
    assert operation.structure == STRUCTURES[structure]
    counted = sum(p.numel() for p in loaded.parameters())
    assert ksurgeon.surgery.record.record_of(loaded).outcome.parameters[1] == counted
    ksurgeon.revert(model)
    assert k_modules(model) == []
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "structure"), CASES)
def test_training_reaches_every_factor(name, structure):
    model = converted(name, structure).train()
    model(zoo.example(name)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "factors" in n)


@pytest.mark.parametrize("structure", ["sum", "monarch sum"])
@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_compile_export_and_autocast(name, structure):
    model, x = converted(name, structure), zoo.example(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    program = torch.export.export(model, (x,), dynamic_shapes=dynamic_batch())
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == getattr(zoo, name)().eval()(x).dtype


def test_an_activation_sees_the_sum():
    layer, x = ksurgeon.KLinear(16, 24, structure=Sum(Monarch(block_rank=1), rank=1)), torch.randn(5, 16)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            y = layer.matrix.affine(x, -1, layer.bias, "relu")
            torch.testing.assert_close(y, layer(x).relu())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_fits_are_reported_as_they_are(structure):
    model = zoo.mlp()
    weight = model.up.weight.detach().clone()
    part = Replacement(find="linear", targets=("up",), structure=STRUCTURES[structure])
    result = ksurgeon.convert(model, Rule(name="one", replace=(part,)), zoo.example("mlp")).results[0]
    error = (model.up.weight - weight).norm() / weight.norm()
    assert result.weight_error == pytest.approx(error.item(), rel=1e-4)
    assert result.weight_error < 0.9


def test_a_shuffle_takes_no_sum():
    with pytest.raises(ksurgeon.StructureError, match="without a low-rank branch"):
        ksurgeon.KChannelShuffle(12, 3, structure=Sum(Kaleidoscope(), rank=1))
