import copy

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import InputError
from ksurgeon.report.compare import compare
from tests import zoo


def test_equal_models():
    model, x = zoo.mlp(), zoo.example("mlp")
    told = compare(model, copy.deepcopy(model), x)
    assert all(output["relative"] == output["largest"] == 0 for output in told.outputs)
    assert told.decided_alike == 1 and told.modules == {}
    assert told.parameters[0] == told.parameters[1] == sum(p.numel() for p in model.parameters())


def test_a_converted_model():
    model, x = zoo.mlp(), zoo.example("mlp")
    converted = ksurgeon.convert(copy.deepcopy(model), "linear", x)
    told = compare(model, converted.model, x)
    assert told.outputs[0]["relative"] == pytest.approx(converted.output_change)
    assert told.parameters == converted.record.outcome.parameters
    assert set(told.modules.values()) == {("Linear", "KLinear")}
    assert len(told.modules) == len(converted.results)


def test_models_that_give_different_things():
    with pytest.raises(InputError, match=r"\(2, 3\).*\(2, 5\)"):
        compare(nn.Linear(4, 3), nn.Linear(4, 5), torch.randn(2, 4))
