"""Pictures of the recipe permuted_images, from a run that stands in for itself."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import permuted
from benchmarks.prepared import prepared, recipe_named
from ksurgeon import save
from ksurgeon.recipes.operate import operate
from ksurgeon.recipes.schema import Recipe
from ksurgeon.recipes.scratch import opened
from ksurgeon.train.log import Listener
from tests.recipes.patches import write_patches


def run_of(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Students whose maps are still the identity, and results that name the second of two trials."""
    variants = {variant.name: variant for variant in recipe.variants}
    for kind in permuted.KINDS:
        variant = variants[f"{kind}-k-labels"]
        source = opened(recipe, variant, {}, torch.device("cpu"))
        student = operate(recipe, variant, source, {}, folder, False, Listener())
        save(student, folder / f"{kind}-k-geometry" / "seed-0")
    point = {"step": 3, "seconds": 2.0, "loss": 1.0}
    labelled = {"seconds": 5.0, "history": [{**point, "student": {"accuracy": 0.5}}]}
    blind = {"seconds": 7.0, "history": [point], "trials": [0.4, 0.3]}
    done = {"surgery_seconds": 10.0, "training": [blind, labelled]}
    return {"variants": {f"{kind}-k-smooth": {"seeds": {"0": done}} for kind in permuted.KINDS}}


def test_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_patches(tmp_path / "cache")
    recipe = recipe_named("permuted_images")
    first, *others = recipe.train
    first = first.model_copy(update={"steps": 4, "trials": 1})
    recipe = recipe.model_copy(update={"train": (first, *others), "calibrate": None})
    places = {name: str(place) for name, place in prepared(recipe).items()}
    results = run_of(recipe, tmp_path / "run")
    seeds = []
    trial = permuted.seed_of_trial
    monkeypatch.setattr(permuted, "seed_of_trial", lambda *given: (seeds.append(given), trial(*given))[1])
    permuted.draw_images(recipe, results, tmp_path / "run", places, tmp_path / "a.png")
    assert seeds == [(0, 1)] * 3
    width, height = Image.open(tmp_path / "a.png").size
    assert width > 600 and height > 1000
    permuted.draw_accuracy(results, tmp_path / "a.svg")
    assert "all pixels" in (tmp_path / "a.svg").read_text()
    shutil.rmtree(tmp_path / "run")


def test_time_is_that_of_all_before() -> None:
    done = {
        "surgery_seconds": 10.0,
        "training": [
            {"seconds": 7.0, "history": [{"step": 1, "seconds": 1.0, "loss": 1.0}]},
            {
                "seconds": 5.0,
                "history": [
                    {"step": step, "seconds": 1.0 + step, "loss": 1.0, "student": {"accuracy": value}}
                    for step, value in ((0, 0.1), (0, 0.2), (4, 0.5))
                ],
            },
        ],
    }
    assert permuted.curve(done) == [(18.0, 0.1), (22.0, 0.5)]


def test_the_table_tells_what_is_regained() -> None:
    means = {"unpermuted": 0.5, "bits-cnn": 0.3, "bits-k-geometry": 0.48, "bits-mlp": 0.25}
    statistics = {
        name: {
            "accuracy": {"number": 2, "mean": value, "standard_error": 0.01},
            **({"neighbours": {"mean": 0.97}} if "k-" in name else {}),
        }
        for name, value in means.items()
    }
    seeds = {str(n): {"surgery_seconds": 2.0, "training": [{"seconds": 3.0}, {"seconds": 4.0}]} for n in "ab"}
    variants = {name: {"parameters": 1000, "seeds": seeds} for name in means}
    lines = permuted.table({"statistics": statistics, "variants": variants}).splitlines()[2:]
    assert lines == [
        "| none | unpermuted | 2 | 50.0 ± 1.0 |  |  | 1,000 | 9 |",
        "| bit reversal | cnn | 2 | 30.0 ± 1.0 |  |  | 1,000 | 9 |",
        "| bit reversal | mlp | 2 | 25.0 ± 1.0 | -25 |  | 1,000 | 9 |",
        "| bit reversal | k-geometry | 2 | 48.0 ± 1.0 | 90 | 97 | 1,000 | 9 |",
    ]


def test_the_short_table_names_the_best_of_the_others() -> None:
    means = {"cnn": 0.3, "mlp": 0.25, "k-labels": 0.26, "k-geometry": 0.48}
    told = {f"{kind}-{arm}": {"accuracy": {"mean": m}} for kind in permuted.KINDS for arm, m in means.items()}
    told["unpermuted"] = {"accuracy": {"mean": 0.5}}
    assert permuted.short({"statistics": told}).splitlines()[3] == (
        "| rows and columns | 30.0 % | 26.0 % (k-labels) | **48.0 %** | 50.0 % |"
    )


def test_shades_tell_where_a_pixel_is_from() -> None:
    found = permuted.shades(torch.arange(1024).flip(0))
    assert (
        found.shape == (32, 32, 3)
        and found[0, 0].tolist() == [1, 1, 0]
        and found[-1, -1].tolist() == [0, 0, 1]
    )
