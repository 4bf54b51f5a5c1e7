"""Figures from files of results land in a page where it asks for them, with what was missed."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report, results
from benchmarks.turns import compared, measure
from ksurgeon.recipes.statistics import statistics_of

SETTING = {"machine": "m", "threads": 1}


def row(case: str = "4→4", rows: int = 1, **ratios: float) -> dict[str, Any]:
    times = {"ours": 2.0} | {name: 2.0 * ratio for name, ratio in ratios.items()}
    us = {name: {"median": t, "low": t, "high": t, "best": t} for name, t in times.items()}
    return compared("linear", case, rows, us, {"dense": 3.0, "absent": 9.0})


def test_what_is_met_and_what_is_not() -> None:
    good, bad = row(dense=3.0), row(dense=2.9)
    assert good["wanted"] == {"dense": 3.0}
    assert results.met(good, "dense") and not results.met(bad, "dense")
    assert results.described(bad, "dense") == "2.9× (missed: ≥ 3×)"
    assert results.described(row(other=2.0), "other") == "2×"


def test_rows_are_added_in_the_place_of_their_likes(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "a.json"
    results.add(file, "title", SETTING, [row(dense=1.0), row(rows=2, dense=1.0)])
    results.add(file, "title", SETTING, [row(dense=5.0)])
    page = f"before\n<!-- results {file.name} -->\nold\n<!-- end -->\nafter\n"
    text = report.render(page, file.parent, tmp_path)
    assert "old" not in text and text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n")
    assert "| 4→4 | 1 | 2 µs | 2–2 | 5× (≥ 3×) |" in text
    assert "1 of 2 targets are met." in text
    assert report.render(text, file.parent, tmp_path) == text
    with pytest.raises(SystemExit, match="name another file"):
        results.add(file, "title", SETTING | {"threads": 2}, [row(dense=5.0)])


def test_a_page_chooses_rows_and_columns(tmp_path: Path) -> None:
    rows = [row("a", dense=3.0, other=1.0), row("b", dense=1.0, other=1.0), row("a", rows=2, dense=3.0)]
    results.add(tmp_path / "a.json", "title", SETTING, rows)
    marker = '<!-- results a.json cases="a; c*" rows="1" columns="den*" -->'
    text = report.render(f"{marker}\n<!-- end -->\n", tmp_path, tmp_path)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table == ["| linear | rows | ours | spread | dense |", "|" + "---|" * 5, table[2]]
    assert table[2] == "| a | 1 | 2 µs | 2–2 | 3× (≥ 3×) |"
    assert "2 of 3 targets are met. [All rows](a.json)." in text
    with pytest.raises(SystemExit, match="unknown lines"):
        report.render('<!-- results a.json lines="1" -->\n<!-- end -->\n', tmp_path, tmp_path)


def test_the_fastest_runs(tmp_path: Path) -> None:
    def run(case: str, ours: float, wanted: dict[str, float]) -> dict[str, Any]:
        times = {"ours": ours, "dense, eager float32": 6.0, "dense, ONNX float32": 4.0}
        times["dense, torch-int8 float32"] = 2000.0
        us = {name: {"median": t, "low": t, "high": t, "best": t} for name, t in times.items()}
        return compared("net", case, 8, us, wanted)

    rows = [run("eager float32", 3.0, {"dense, eager float32": 3.0}), run("ONNX float32", 2.0, {})]
    rows.append(run("eager int8", 1000.0, {}))
    results.add(tmp_path / "a.json", "title", SETTING, rows)
    text = report.render("<!-- results a.json fastest -->\n<!-- end -->\n", tmp_path, tmp_path)
    assert "| net | 8 | float32 | 4 µs, ONNX | 2 µs, ONNX | 2× |" in text
    assert "| net | 8 | int8 | 2 ms, torch-int8 | 1 ms, eager | 2× |" in text
    assert "- net, batch 8, eager float32: dense, eager float32 2× (missed: ≥ 3×)" in text
    assert "bfloat16" not in text


def test_a_roofline_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    limited = row(**{results.PEAK: 0.5, results.READ: 0.7}) | {"flop": 4000, "bytes": 8000}
    limited["us"] |= {results.PEAK: {"median": 0.02}, results.READ: {"median": 0.05}}
    picture = tmp_path / "a.svg"
    assert report.roofline({"title": "t", "rows": [limited]}, picture)
    assert picture.read_text().lstrip().startswith("<?xml")
    assert not report.roofline({"title": "t", "rows": [row(dense=1.0)]}, picture)


def test_candidates_take_turns() -> None:
    order: list[str] = []
    times = measure({name: lambda n=name: order.append(n) for name in "ab"}, 0.0)  # type: ignore[misc]
    assert set(times) == {"a", "b"} and all(t["low"] <= t["median"] <= t["high"] for t in times.values())
    changes = sum(one != two for one, two in pairwise(order))
    assert changes >= 9


def test_results_of_a_recipe_with_seeds(tmp_path: Path) -> None:
    def variant(milliseconds: float, *accuracies: float) -> dict[str, Any]:
        seeds = {
            str(number): {
                "parameters": 12,
                "surgery_seconds": 0.0,
                "after_training": {"accuracy": accuracy},
                "training": [{"seconds": 7.0, "steps": 1, "history": [{"step": 1, **point}]}],
            }
            for number, accuracy in enumerate(accuracies)
        }
        return {
            "parameters": 1200,
            "multiplications": 3,
            "latency": {"milliseconds": milliseconds},
            "seeds": seeds,
        }

    point = {"seconds": 1.0, "loss": 1.0, "student": {"accuracy": 0.5}}
    variants = {"plain": variant(2.0, 0.5, 0.6), "new": variant(3.0, 0.625, 0.725)}
    done = {
        "recipe": "small",
        "machine": {"processor": "slow", "gpu": None, "torch": "2.11"},
        "baseline": "plain",
        "variants": variants,
    }
    done["statistics"] = statistics_of(done)
    (tmp_path / "a.json").write_text(json.dumps(done))
    text = report.render("<!-- results a.json -->\n<!-- end -->\n", tmp_path, tmp_path)
    assert "**small** · processor slow, torch 2.11; 2 seeds" in text
    assert "| new | 2 | 1,200 | 3 | 67.5 ± 5.0 | +12.5 (+12.5 … +12.5) | 7 | 3.00 | 1.50× |" in text
    assert "(small.svg)" in text and (tmp_path / "small.svg").is_file()
    assert report.render(text, tmp_path, tmp_path) == text
    drawn = (tmp_path / "small.svg").read_bytes()
    marker = '<!-- results a.json cases="n*" columns="variant; accuracy*" -->\n<!-- end -->\n'
    assert "| new | 67.5 ± 5.0 | +12.5 (+12.5 … +12.5) |\n\n!" in report.render(marker, tmp_path, tmp_path)
    assert (tmp_path / "small.svg").read_bytes() == drawn
    done["resumed_on"] = [done["machine"] | {"processor": "fast"}]
    (tmp_path / "a.json").write_text(json.dumps(done))
    assert "· processor slow and fast, torch 2.11; 2 seeds" in report.render(text, tmp_path, tmp_path)
