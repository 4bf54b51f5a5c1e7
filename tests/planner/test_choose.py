"""The exact choice beside brute force."""

import os
from itertools import product

import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from ksurgeon.errors import PlanError
from ksurgeon.planner.choose import choose, least

numbers = st.floats(0, 1e3, allow_nan=False).map(lambda x: round(x, 3))
groups = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5), min_size=1, max_size=5)


def brute_force(values, weights, limit):
    best = None
    for picked in product(*(range(len(group)) for group in values)):
        if sum(w[i] for w, i in zip(weights, picked, strict=True)) <= limit:
            value = sum(v[i] for v, i in zip(values, picked, strict=True))
            best = value if best is None else min(best, value)
    return best


@settings(max_examples=60, deadline=None)
@given(groups, st.floats(0, 1))
def test_the_choice_is_the_best_there_is(groups, share):
    values = [[value for value, _ in group] for group in groups]
    weights = [[weight for _, weight in group] for group in groups]
    low, high = least(weights), sum(max(group) for group in weights)
    limit = low + share * (high - low)
    found = choose(values, weights, limit)
    assert found.weight <= limit * (1 + 1e-9)
    assert found.value == pytest.approx(brute_force(values, weights, limit * (1 + 1e-12)), rel=1e-6, abs=1e-5)
    assert found.value == pytest.approx(sum(v[i] for v, i in zip(values, found.picked, strict=True)))


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_scales_of_harm_and_cost_do_not_matter(scale):
    values = [[0.0, scale, 3 * scale], [0.0, 2 * scale, 5 * scale]]
    weights = [[10 / scale, 6 / scale, 1 / scale], [10 / scale, 5 / scale, 2 / scale]]
    assert choose(values, weights, 11.5 / scale).picked == [1, 1]


def test_a_limit_that_cannot_be_met():
    with pytest.raises(PlanError, match="the least is 3"):
        choose([[0.0, 1.0]], [[5.0, 3.0]], 2.9)


def test_options_that_others_beat_are_never_taken():
    assert choose([[0.0, 1.0, 2.0]], [[9.0, 3.0, 4.0]], 5).picked == [1]


def test_what_the_solver_prints_stays_unseen(monkeypatch, capfd):
    solve = scipy.optimize.milp

    def chatty(*args, **options):
        os.write(1, b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();\n")
        return solve(*args, **options)

    monkeypatch.setattr(scipy.optimize, "milp", chatty)
    assert choose([[0.0, 1.0], [0.0, 2.0]], [[3.0, 1.0], [3.0, 1.0]], 4).picked == [1, 0]
    os.write(1, b"seen")
    assert capfd.readouterr().out == "seen"
