"""K-matrices by angles in a model: planned, recorded, saved, loaded, exported, trained and reverted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ksurgeon
from ksurgeon import KChannelShuffle, Rule
from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.rotations import Rotations
from tests import zoo
from tests.near import near

X = zoo.example("shufflenet_v1_g4")
BY_ANGLES = {"structure": "kaleidoscope", "width": 1, "parametrization": "orthogonal"}


def rule(start: str = "orthogonal", find: str = "channel_shuffle") -> Rule:
    part: Any = {"find": find, "with": BY_ANGLES, "start": start}
    return Rule(name="angles", replace=[part])


def test_a_model_with_angles_goes_all_ways(tmp_path: Path) -> None:
    model = zoo.shufflenet_v1_g4().eval()
    before = sum(p.numel() for p in model.parameters())
    conversion = ksurgeon.convert(model, rule(), X, source="tests.zoo:shufflenet_v1_g4")
    added = sum(result.parameters_after for result in conversion.results)
    assert sum(p.numel() for p in model.parameters()) == before + added
    shuffles = [module for module in model.modules() if isinstance(module, KChannelShuffle)]
    assert shuffles and all(isinstance(module.matrix.factors, Rotations) for module in shuffles)
    for decision in conversion.plan.replacements:
        n, structure = decision.in_features, decision.structure
        each = decision.multiplications_after / structure.multiplications(n, n)  # vectors
        assert each == int(each) > 0 and decision.parameters_after < structure.multiplications(n, n) / 2
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        shuffles[0](torch.randn(2, shuffles[0].in_features, 3, 3))
    assert counted.get_total_flops() == 2 * 18 * shuffles[0].matrix.multiplications
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()(X).square().mean().backward()
    optimiser.step()
    with torch.no_grad():
        expected = model.eval()(X)
        assert near(model(X), expected)
    ksurgeon.save(model, tmp_path / "model")
    record = json.loads((tmp_path / "model" / "ksurgeon.json").read_text())
    assert record["operations"][0]["structure"]["parametrization"] == "orthogonal"
    loaded = ksurgeon.load(tmp_path / "model", trust_remote_code=True)
    with torch.no_grad():
        assert near(loaded(X), expected)
    ksurgeon.revert(loaded)
    assert not any(isinstance(module, Rotations) for module in loaded.modules())
    with torch.no_grad():
        torch.testing.assert_close(loaded(X), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["exact", "fit"])
def test_starts_that_write_factors_are_refused(start: str) -> None:
    with pytest.raises(ValueError, match=f'start = "{start}" needs parametrization = "free"'):
        rule(start)


def test_an_exported_program_needs_no_angles(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(24, 24)), torch.randn(3, 24)
    ksurgeon.convert(model, rule("random", "linear"), x)
    ksurgeon.export_model(model, tmp_path / "model.pt2", x)
    program = torch.export.load(tmp_path / "model.pt2")
    assert not any("angles" in name for name in program.state_dict)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)
    assert isinstance(model[0].matrix.factors, Rotations)


def test_an_identity_in_place_of_a_square_layer_and_no_dense_weights() -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 12))
    conversion = ksurgeon.convert(model, rule("identity", "linear"), torch.randn(2, 24))
    assert [d.action for d in conversion.plan.decisions] == ["replace", "leave"]
    assert 'parametrization = "orthogonal" is for square maps' in conversion.plan.decisions[1].reason
    assert torch.equal(model[0].weight, torch.eye(24))
    assert conversion.plan.decisions[0].parameters_after == sum(p.numel() for p in model[0].parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dense = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 12)).state_dict()
    with pytest.raises(StructureError, match='use parametrization = "free"'):
        ksurgeon.load_dense(model, dense)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
