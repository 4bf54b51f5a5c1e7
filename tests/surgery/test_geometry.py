"""Insertions that start as the permutation that data tell."""

import pytest
import torch
from torch import nn

import ksurgeon
from ksurgeon import KChannelShuffle, Rule, neighbour_share
from ksurgeon.errors import DataError, InputError, MatchError, PlanError
from ksurgeon.find import find
from ksurgeon.kernels.permutation import permutation_of
from ksurgeon.kmatrix.structures import Kaleidoscope
from ksurgeon.rules import Insertion
from ksurgeon.rules.files import read_plan, write_plan
from ksurgeon.rules.plan import make_plan
from ksurgeon.surgery.record import record_of
from tests.fields import GRID, TRUTH, classifier, mixer, shuffled
from tests.near import near


def rule(target="1", *, place="before", dim=1, grid=GRID):
    part = Insertion(dim=dim, start="geometry", grid=grid, structure=Kaleidoscope(), **{place: (target,)})
    return Rule(name="arranged", insert=(part,))


def test_neighbours_are_together_again_and_all_goes_on_from_there(tmp_path):
    model, data = classifier(), shuffled()
    x = data[:5]
    before = model(x)
    conversion = ksurgeon.convert(
        model, rule(), x, data=data, examples=2000, source="tests.fields:classifier"
    )
    (operation,), (result,) = conversion.record.operations, conversion.results
    permutation = torch.tensor(operation.permutation)
    assert (operation.start, result.start, operation.calibrated) == ("geometry", "geometry", False)
    assert neighbour_share(permutation, TRUTH, GRID) >= 0.95
    new, flat = model.get_submodule(result.path), x.flatten(1)
    assert isinstance(new, KChannelShuffle) and torch.equal(new(flat), flat[:, permutation])
    assert torch.equal(permutation_of(list(new.matrix.factors)), permutation)  # run as an index copy
    after = model(x)
    assert near(after, model[1].forward(flat[:, permutation])) and (after - before).abs().max() > 0.01
    assert conversion.output_change > 1e-3
    ksurgeon.save(model, tmp_path / "model")
    loaded = ksurgeon.load(tmp_path / "model", trust_remote_code=True)
    assert near(loaded(x), after) and record_of(loaded).operations == record_of(model).operations
    loaded(x).square().sum().backward()
    assert all(factor.grad.abs().max() > 0 for factor in loaded.get_submodule(result.path).matrix.factors)
    ksurgeon.revert(loaded)
    assert type(loaded[1].kbefore0) is nn.Linear and near(loaded(x), after)
    ksurgeon.save(loaded, tmp_path / "dense")
    assert near(ksurgeon.load(tmp_path / "dense", trust_remote_code=True)(x), after)
    with torch.no_grad():
        new.matrix.reset_parameters("identity")
    ksurgeon.revert(model)
    assert near(model(x), before) and not list(model[1].children())


@pytest.mark.parametrize(("place", "target"), [("before", "0"), ("after", "1")])
def test_positions_are_examples_and_a_map_may_stand_behind(place, target):
    """Channels, which the hidden permutation is of, at 20 positions of 100 sequences."""
    data = shuffled().view(100, 20, 64).mT.contiguous()
    model = mixer() if place == "before" else nn.Sequential(nn.Identity(), nn.Identity()).eval()
    conversion = ksurgeon.convert(model, rule(target, place=place), data[:2], data=data)
    permutation = torch.tensor(conversion.record.operations[0].permutation)
    assert neighbour_share(permutation, TRUTH, GRID) >= 0.95
    assert torch.equal(model.get_submodule(conversion.results[0].path)(data), data[:, permutation])


def test_a_plan_may_say_it(tmp_path):
    data = shuffled()
    plan = make_plan(find(classifier(), data[:2], insertions=True), rule())
    write_plan(plan, tmp_path / "plan.toml")
    models = classifier(), classifier()
    ksurgeon.convert(models[0], rule(), data[:2], data=data)
    ksurgeon.convert(models[1], example_inputs=data[:2], data=data, plan=read_plan(tmp_path / "plan.toml"))
    assert torch.equal(models[0](data[:9]), models[1](data[:9]))
    (decision,) = plan.replacements
    for change, message in (
        ({"grid": (4, 4)}, r"1:before\.dim1: 64 entries form no grid 4 × 4"),
        ({"start": "orthogonal"}, 'a grid goes with start = "geometry", not "orthogonal"'),
        ({"kind": "linear", "path": "1", "out_features": 10, "dim": None}, "are for insertions"),
    ):
        other = plan.model_copy(update={"decisions": [decision.model_copy(update=change)]})
        with pytest.raises(PlanError, match=message):
            ksurgeon.convert(classifier(), example_inputs=data[:2], data=data, plan=other)


def test_what_is_refused_leaves_the_model_as_it_was():
    data = shuffled(200)
    constant, bad = data.clone(), data.clone()
    constant[:, 0, 0, 7], bad[30, 0, 2, 2] = 0.1, torch.nan
    for error, message, options in (
        (DataError, r'"geometry" at 1:before\.dim1 needs data .* \[calibrate\]', {}),
        (DataError, r"at 1:before\.dim1: 1 entries are constant, the first is 7", {"data": constant}),
        (DataError, r"at 1:before\.dim1: \d+ examples tell no neighbours", {"data": data[:50]}),
        (InputError, r"NaN or infinite entries at the input of 1:before\.dim1", {"data": bad}),
        (MatchError, "64 entries form no grid 8 × 9", {"data": data, "rule": rule(grid=(8, 9))}),
    ):
        model = classifier()
        before, names = model(data), list(model.state_dict())
        with pytest.raises(error, match=message):
            ksurgeon.convert(model, **{"rule": rule(), "example_inputs": data[:2], **options})
        assert torch.equal(model(data), before) and list(model.state_dict()) == names
