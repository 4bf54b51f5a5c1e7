import copy

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon.train.layerwise import _train_layer, least_squares

SIZES = [(32, 48), (48, 32), (16, 16)]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).eval()


def rule(share: float = 0.5) -> ksurgeon.Rule:
    part = {"find": "linear", "with": {"structure": "block_sparse", "share": share}}
    return ksurgeon.Rule.model_validate({"name": "sparse", "replace": [part]})


def test_a_rule_knows_the_structure_by_its_entry_point():
    converted = ksurgeon.replace_modules(model(), rule(), torch.ones(2, 32))
    assert type(converted[0].matrix).__name__ == "BlockSparseMatrix"


@pytest.mark.parametrize("sizes", SIZES)
def test_products_are_those_of_the_dense_matrix(sizes):
    from ksurgeon_plugin.block_sparse import BlockSparse

    torch.manual_seed(1)
    layer = ksurgeon.KLinear(*sizes, structure=BlockSparse(share=0.6)).double()
    x = torch.randn(3, 5, sizes[0], dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ layer.weight.mT + layer.bias)
    assert torch.autograd.gradcheck(layer, x[0].clone().requires_grad_())
    conv = ksurgeon.KPointwiseConv(*sizes, structure=BlockSparse(share=0.6), bias=False).double()
    image = torch.randn(2, sizes[0], 3, 4, dtype=torch.float64)
    torch.testing.assert_close(conv(image), torch.einsum("oi,bihw->bohw", conv.matrix.to_dense(), image))


def test_a_matrix_that_is_block_sparse_is_recovered():
    from ksurgeon_plugin.block_sparse import BlockSparse

    torch.manual_seed(2)
    wanted = ksurgeon.KLinear(64, 32, structure=BlockSparse(share=0.25)).double()
    layer = nn.Linear(64, 32).double()
    layer.weight.data = wanted.weight.detach()
    fitted = ksurgeon.KLinear.from_linear(layer, BlockSparse(share=0.25), data=torch.randn(300, 64).double())
    torch.testing.assert_close(fitted.weight.detach(), layer.weight.detach())
    assert not isinstance(fitted.matrix, ksurgeon.KMatrix)


def test_convert_save_load_and_revert(tmp_path):
    x = torch.randn(64, 32)
    conversion = ksurgeon.convert(model(), rule(), data=x)
    expected = conversion.model(x)
    assert "block-sparse" in str(conversion)
    ksurgeon.save(conversion.model, tmp_path / "saved")
    loaded = ksurgeon.load(tmp_path / "saved", model=model())
    torch.testing.assert_close(loaded(x), expected)
    torch.testing.assert_close(ksurgeon.revert(loaded)(x), expected, rtol=1e-4, atol=1e-5)


def test_the_planner_tries_it():
    data = torch.randn(256, 32)
    planned = ksurgeon.plan(model(), "params=0.6", data, structures=["block_sparse"])
    assert {d.structure.structure for d in planned.plan.replacements} == {"block_sparse"}


def test_errors():
    from ksurgeon_plugin.block_sparse import BlockSparse

    with pytest.raises(ksurgeon.StructureError, match="share must be above 0"):
        BlockSparse(share=2.0)
    with pytest.raises(ksurgeon.StructureError, match="blocks of 16 do not divide 20 → 32"):
        ksurgeon.KLinear(20, 32, structure=BlockSparse())


def test_weights_of_the_dense_architecture_are_fitted_where_their_blocks_are():
    x, new = torch.randn(64, 32), model()
    converted = ksurgeon.replace_modules(model(), rule(), data=x)
    new[0].weight.data = new[0].weight.data.flip(0, 1)
    errors = ksurgeon.load_dense(converted, new.state_dict())
    change = converted[0].weight.detach() - new[0].weight.detach()
    assert errors["0"] == pytest.approx(float(change.norm() / new[0].weight.detach().norm()), rel=1e-3)


def test_distillation_and_what_it_takes_back():
    dense, x = model(), torch.randn(64, 32)
    student = ksurgeon.replace_modules(copy.deepcopy(dense), rule(), data=x)
    before = {name: tensor.clone() for name, tensor in student[0].state_dict().items()}
    result = _train_layer("0", student[0], dense[0], torch.randn(8, 32), least_squares)
    if result.after == result.before:
        assert all(torch.equal(before[name], tensor) for name, tensor in student[0].state_dict().items())
    ksurgeon.distill(student, dense, [torch.randn(8, 32) for _ in range(20)], steps=2)
    ksurgeon.distill_gradually(
        copy.deepcopy(student), dense, [torch.randn(8, 32) for _ in range(20)], steps=2, groups=2
    )


def test_what_it_cannot_be_is_left():
    convolutions = nn.Sequential(nn.Conv2d(32, 64, 1), nn.Conv2d(64, 64, 1, groups=2)).eval()
    part = {"find": "pointwise_conv", "with": {"structure": "block_sparse"}}
    told = ksurgeon.Rule.model_validate({"name": "sparse", "replace": [part]})
    done = ksurgeon.convert(convolutions, told, torch.randn(2, 32, 4, 4))
    decisions = {d.path: d for d in done.plan.decisions}
    assert decisions["0"].action == "replace"
    assert "has one group, got 2" in decisions["1"].reason
    wrong = {"find": "channel_shuffle", "start": "random", "with": {"structure": "block_sparse"}}
    with pytest.raises(ValueError, match="is no chain of factors"):
        ksurgeon.Rule.model_validate({"name": "sparse", "replace": [wrong]})


def test_dtypes_under_autocast_and_wrong_sizes():
    from ksurgeon_plugin.block_sparse import BlockSparse

    layer = ksurgeon.KLinear(32, 64, structure=BlockSparse())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 32)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="expected 32 entries"):
        layer(torch.randn(2, 48))
    with pytest.raises(ksurgeon.ExportError, match=r"torch\.jit\.script"):
        torch.jit.script(layer)
