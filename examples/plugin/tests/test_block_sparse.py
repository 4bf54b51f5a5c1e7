import pytest
import torch
from torch import nn

import ksurgeon

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
    found = ksurgeon.KMatrix  # an exported name, for the reader: chains are KMatrix, this one is not
    wanted = ksurgeon.KLinear(64, 32, structure=BlockSparse(share=0.25)).double()
    layer = nn.Linear(64, 32).double()
    layer.weight.data = wanted.weight.detach()
    fitted = ksurgeon.KLinear.from_linear(layer, BlockSparse(share=0.25), data=torch.randn(300, 64).double())
    torch.testing.assert_close(fitted.weight.detach(), layer.weight.detach())
    assert not isinstance(fitted.matrix, found)


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
