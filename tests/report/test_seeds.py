"""The picture of several seeds."""

import pytest

from ksurgeon.recipes.statistics import statistics_of
from ksurgeon.report import seeds


def stage(*points, **metrics):
    history = [
        {"step": step, "seconds": 1.0, "loss": value, "student": {name: value for name in metrics}}
        for step, value in points
    ]
    return {"steps": points[-1][0], "seconds": 1.0, "history": history}


def test_a_stage_that_knows_nothing_of_what_decides_is_passed_over(monkeypatch, tmp_path):
    """Its steps count, its losses are not drawn among accuracies."""
    figures = []
    monkeypatch.setattr(seeds, "write_figure", lambda figure, file: figures.append(figure))
    last = stage((0, 0.1), (7, 0.5), accuracy=True)
    runs = {"plain": [last], "found": [stage((0, 9.0), (40, 8.0)), last]}
    variants = {
        name: {
            "parameters": 1,
            "seeds": {"0": {"after_training": {"accuracy": 0.5}, "training": training}},
        }
        for name, training in runs.items()
    }
    variants["untrained"] = {
        "parameters": 1,
        "seeds": {"0": {"after_training": {"accuracy": 0.4}, "training": []}},
    }
    results = {"variants": variants, "baseline": "plain"}
    results["statistics"] = statistics_of(results)
    seeds.draw_seeds(results, tmp_path / "a.svg")
    curves = {line.get_label(): line.get_xydata().tolist() for line in figures[0].axes[0].lines}
    assert curves["plain"] == [[0, 0.1], [7, 0.5]]
    assert curves["found"] == [[40, 0.1], [47, 0.5]]
    assert figures[0].axes[0].get_ylabel() == "held-out accuracy"
    assert figures[0].axes[0].get_ylim()[1] == pytest.approx(0.52)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_many_metrics_have_a_line_each(count):
    """Two stand beside one another; the table of more is no wider than that of one."""
    metrics = {f"metric_{number}": 0.5 + number / 10 for number in range(count)}

    def variant(shift):
        told = {name: value + shift for name, value in metrics.items()}
        return {"parameters": 1, "seeds": {"0": {"after_training": told, "training": []}}}

    results = {"variants": {"plain": variant(0.0), "other": variant(0.25)}, "baseline": "plain"}
    results["statistics"] = statistics_of(results)
    table = seeds.seeds_table(results)
    cells = [list(column.cells) for column in table.columns]
    assert len(cells[0]) == (2 if count <= 2 else 2 * count)
    assert len(table.columns) == (5 + 2 * count if count <= 2 else 5 + 3)
    rows = [" ".join(row) for row in zip(*cells, strict=True)]
    for name, value in metrics.items():
        shown = [row for row in rows if f"{value + 0.25:.4f}" in row and "+0.2500" in row]
        assert shown, name
        assert count <= 2 or any(name in row for row in shown)
