"""Means, and differences on the same seeds."""

import pytest
from scipy.stats import ttest_rel

from ksurgeon.recipes.statistics import difference, statistics_of, summary


def test_the_interval_is_that_of_the_paired_t_test():
    one, other = [0.51, 0.56, 0.50, 0.55], [0.50, 0.52, 0.49, 0.5]
    seeds = ["0", "1", "2", "3"]
    told = difference(dict(zip(seeds, one, strict=True)), dict(zip(seeds, other, strict=True)) | {"9": 0.0})
    expected = ttest_rel(one, other).confidence_interval(0.95)
    assert told["interval"] == pytest.approx([expected.low, expected.high])
    assert told["mean"] == pytest.approx(0.0275) and told["number"] == 4
    assert difference({"0": 1.0}, {"1": 1.0}) is None
    assert summary([2.0]) == {"number": 1, "mean": 2.0, "standard_error": None}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number_ends_nothing(value):
    told = summary([1.0, value, 2.0])
    assert str(told["mean"]) == str(value) and told["standard_error"] is None and "interval" not in told
    assert str(difference({"0": 1.0, "1": value}, {"0": 0.0, "1": value})["mean"]) == "nan"


def test_seeds_that_are_done_make_the_pairs():
    def variant(**values):
        seeds = {
            seed[1:]: {"after_training": {"a": v}, "training": [{"seconds": 1}]} for seed, v in values.items()
        }
        return {"seeds": seeds}

    variants = {"k": variant(s0=3.0, s1=5.0), "base": variant(s1=1.0), "other": variant(s0=2.0, s1=2.0)}
    told = statistics_of({"variants": variants, "baseline": "base"})
    assert told["k"]["a"]["mean"] == 4 and told["k"]["a"]["difference"]["mean"] == 4
    assert told["k"]["seconds"]["mean"] == 1 and "difference" not in told["base"]["a"]
    assert "interval" not in told["k"]["a"]["difference"]
    alone = statistics_of({"variants": {"k": variant(s0=3.0)}, "baseline": "base"})
    assert "difference" not in alone["k"]["a"]
    own = {"k": "other", "other": "other"}
    told = statistics_of({"variants": variants, "baseline": "base", "baselines": own})
    assert told["k"]["a"]["difference"]["mean"] == 2 and told["k"]["a"]["difference"]["against"] == "other"
    assert "difference" not in told["other"]["a"] and "difference" not in told["base"]["a"]
