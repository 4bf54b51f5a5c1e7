"""What several seeds of a recipe's variants say together: means, and differences on the same seeds."""

from collections.abc import Sequence
from math import isfinite
from statistics import fmean, stdev
from typing import Any

__all__ = ["difference", "statistics_of", "summary"]

Results = dict[str, Any]


def summary(values: Sequence[float]) -> Results:
    """Number of values, their mean, its standard error, and Student's interval of 95 % of two or more.

    With NaN or infinite values there is no error and no interval, and the mean is NaN or infinite, too.
    """
    from scipy.stats import t

    number, finite = len(values), all(map(isfinite, values))
    mean = fmean(values) if finite else sum(values) / number
    if number < 2 or not finite:
        return {"number": number, "mean": mean, "standard_error": None}
    error = stdev(values) / number**0.5
    half = error * float(t.ppf(0.975, number - 1))
    return {"number": number, "mean": mean, "standard_error": error, "interval": [mean - half, mean + half]}


def difference(values: dict[str, float], baseline: dict[str, float]) -> Results | None:
    """Summary of the differences on the seeds that both have; None where there is no such seed."""
    seeds = [seed for seed in values if seed in baseline]
    return summary([values[seed] - baseline[seed] for seed in seeds]) if seeds else None


def statistics_of(results: Results) -> dict[str, dict[str, Results]]:
    """For each variant and metric, the summary over the seeds that are done, and the difference to its
    baseline.

    Args:
        results: "variants" by name, with the results of each seed under "seeds"; "baseline", what they are
            compared with; and "baselines", what some of them are compared with in its place, which their
            differences then name ("against").
    """
    told: dict[str, dict[str, Results]] = {}
    found = {name: _by_metric(variant) for name, variant in results["variants"].items()}
    for name, metrics in found.items():
        told[name] = {}
        baseline = results.get("baselines", {}).get(name, results["baseline"])
        against = found.get(baseline, {}) if baseline != name else {}
        own = {"against": baseline} if baseline != results["baseline"] else {}
        for metric, values in metrics.items():
            told[name][metric] = summary(list(values.values()))
            compared = difference(values, against.get(metric, {}))
            if compared is not None:
                told[name][metric]["difference"] = compared | own
    return told


def _by_metric(variant: Results) -> dict[str, dict[str, float]]:
    """Values by metric and seed, seconds of training among them."""
    found: dict[str, dict[str, float]] = {}
    for seed, done in variant["seeds"].items():
        seconds = sum(stage["seconds"] for stage in done["training"])
        for metric, value in {**done["after_training"], "seconds": seconds}.items():
            found.setdefault(metric, {})[seed] = value
    return found
