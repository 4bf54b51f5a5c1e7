"""What the recipe permuted_images found, as a table and pictures: ``python -m benchmarks.permuted RUN``.

RUN is the folder of a run. The table is printed, the results are copied to ``benchmarks/results``, and two
pictures go to ``docs``: images after the map that arranges them, along the training without labels and at its
end, with the permutations that were found; and held-out accuracy over the time of training.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.prepared import prepared, recipe_named
from ksurgeon import finetune, load
from ksurgeon.calibrate.arrays import open_arrays
from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function
from ksurgeon.recipes.job import seed_of_trial
from ksurgeon.recipes.operate import operate
from ksurgeon.recipes.schema import Recipe, Variant
from ksurgeon.recipes.scratch import opened, settings_of, stage_data
from ksurgeon.report.figures import COLOURS, GREY
from ksurgeon.train.log import Evaluation, Listener

KINDS = {"bits": "bit reversal", "lines": "rows and columns", "pixels": "all pixels"}
ARMS = ("k-geometry", "k-smooth", "k-labels", "sinkhorn", "dense", "mlp", "cnn")
_SHOWN, _SNAPSHOTS = 3, 5  # images, and times at which they are shown
_SIDE = 32
Results = dict[str, Any]


class Watching(Listener):
    """Keeps what a model's first part gives whenever the model is evaluated after a step."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.images = model, images
        self.seen: list[tuple[int, Tensor]] = []

    @torch.no_grad()
    def evaluated(self, evaluation: Evaluation) -> None:
        if evaluation.step:
            self.seen.append((evaluation.step, self.model.arrange(self.images)[:, 0]))


def along(
    recipe: Recipe, variant: Variant, done: Results, places: dict[str, str], images: Tensor
) -> tuple[nn.Module, list[tuple[int, Tensor]]]:
    """The trial that a run chose once more: the model at its end, and the images meanwhile, by step."""
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        source = opened(recipe, variant, places, device)
        model = operate(recipe, variant, source, places, Path(folder), False, Listener())
    stage = recipe.stages_of(variant)[0]
    assert stage.loss is not None
    settings = settings_of(recipe, variant, stage, {"evaluate": _SNAPSHOTS})
    data = stage_data(recipe, stage, model, places, settings)
    losses = done["training"][0].get("trials", [0.0])
    seed = seed_of_trial(settings.seed, losses.index(min(loss for loss in losses if loss is not None)))
    watching = Watching(model, images)
    finetune(
        model,
        replace(data, seed=seed),
        loss=find_function(stage.loss, RecipeError, recipe.folder),
        settings=settings.model_copy(update={"seed": seed}),
        listener=watching,
        device="cpu",
    )
    return model, watching.seen


def table(results: Results) -> str:
    """Markdown: for each permutation and arm the mean accuracy, the share of what the permutation costs that
    is regained, the share of neighbours, parameters and seconds, surgery included."""
    told, variants = results["statistics"], results["variants"]

    def mean(name: str, metric: str) -> float | None:
        return told.get(name, {}).get(metric, {}).get("mean")

    def accuracy(name: str) -> str:
        one = told[name]["accuracy"]
        spread = f" ± {100 * one['standard_error']:.1f}" if one["standard_error"] is not None else ""
        return f"{100 * one['mean']:.1f}{spread}"

    ceiling = mean("unpermuted", "accuracy")
    lines = [
        "| permutation | arm | seeds | accuracy, % | gap regained, % | neighbours, % | parameters | seconds |"
    ]
    lines.append("|" + "---|" * 8)
    for kind, title in {"": "none", **KINDS}.items():
        floor = mean(f"{kind}-cnn", "accuracy")
        for arm in ARMS[::-1] if kind else ("unpermuted",):
            name = f"{kind}-{arm}" if kind else arm
            here = mean(name, "accuracy")
            if here is None:
                continue
            known = kind and arm != "cnn" and floor is not None and ceiling is not None and ceiling > floor
            regained = f"{100 * (here - floor) / (ceiling - floor):.0f}" if known else ""
            near = mean(name, "neighbours")
            cells = [title, arm, str(told[name]["accuracy"]["number"]), accuracy(name), regained]
            cells += [f"{100 * near:.0f}" if near is not None else "", f"{variants[name]['parameters']:,}"]
            cells.append(f"{fmean(map(seconds, variants[name]['seeds'].values())):.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def short(results: Results) -> str:
    """Markdown: for each permutation the mean accuracy of the CNN alone, of the best of what else could find
    it, of K-matrices from geometry, and of the CNN on images as they are."""
    told = results["statistics"]
    lines = ["| pixels permuted by | CNN | best other | K-matrix from geometry | CNN, not permuted |"]
    lines.append("|" + "---|" * 5)

    def mean(name: str) -> float:
        return 100 * float(told[name]["accuracy"]["mean"])

    for kind, title in KINDS.items():
        others = [arm for arm in ARMS[1:-1] if told.get(f"{kind}-{arm}")]
        best = max(others, key=lambda arm: mean(f"{kind}-{arm}"))
        cells = [title, f"{mean(f'{kind}-cnn'):.1f} %", f"{mean(f'{kind}-{best}'):.1f} % ({best})"]
        cells += [f"**{mean(f'{kind}-k-geometry'):.1f} %**", f"{mean('unpermuted'):.1f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shades(order: Tensor) -> Tensor:
    """A colour for each place, ``(32, 32, 3)``, that tells which pixel is there: its row and its column."""
    rows, columns = (order // _SIDE).view(_SIDE, _SIDE), (order % _SIDE).view(_SIDE, _SIDE)
    return torch.stack([rows, columns, _SIDE - 1 - rows], -1).float() / (_SIDE - 1)


def draw_images(recipe: Recipe, results: Results, run: Path, places: dict[str, str], file: Path) -> None:
    """For each permutation: images as they are, permuted, along the training and arranged, and below them
    where the pixels of each come from."""
    plain = find_function("permuted_images.py:plain", RecipeError, recipe.folder)
    nearest = find_function("permuted_images.py:nearest", RecipeError, recipe.folder)
    source = open_arrays(Path(places["patches"]), "test")
    assert source is not None
    step = len(source) // (_SHOWN + 1)
    images = torch.stack([plain(source.read((n + 1) * step).value) for n in range(_SHOWN)])
    variants = {variant.name: variant for variant in recipe.variants}
    rows, columns = len(KINDS) * (_SHOWN + 1), _SNAPSHOTS + 4
    figure = Figure(figsize=(1.05 * columns, 1.12 * rows), layout="constrained")
    axes = figure.subplots(rows, columns)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, kind in enumerate(KINDS):
        name = f"{kind}-k-smooth"
        done = results["variants"][name]["seeds"][str(recipe.seed)]
        learned, seen = along(recipe, variants[name], done, places, images)
        arranged = load(run / f"{kind}-k-geometry" / f"seed-{recipe.seed}", trust_remote_code=True)
        hidden = arranged.arrange.hidden
        order = hidden.order
        straight = hidden.order.argsort()
        with torch.no_grad():
            permuted = hidden(images)
            shown = {"image": permuted[:, straight], "permuted": permuted}
            shown |= {f"step {at}": pictures for at, pictures in seen[-_SNAPSHOTS:]}
            shown |= {"hardened": learned.arrange(images), "geometry": arranged.arrange(images)}
        places_of = {
            "image": torch.arange(_SIDE**2),
            "permuted": order,
            "hardened": order[nearest(learned)],
            "geometry": order[nearest(arranged)],
        }
        for column, (title, pictures) in enumerate(shown.items()):
            here = axes[number * (_SHOWN + 1) : (number + 1) * (_SHOWN + 1), column]
            here[0].set_title(title, fontsize=8)
            for axis, picture in zip(here, pictures.reshape(_SHOWN, _SIDE, _SIDE), strict=False):
                axis.imshow(picture.numpy(), cmap="gray", vmin=-2.5, vmax=2.5)
            if title in places_of:
                here[-1].imshow(shades(places_of[title]).numpy())
        axes[number * (_SHOWN + 1), 0].set_title(f"{KINDS[kind]}\nimage", fontsize=8)
    figure.savefig(file, dpi=110)


def draw_accuracy(results: Results, file: Path) -> None:
    """Held-out accuracy over seconds, surgery and stages without labels included, one panel for each
    permutation; the means of all seeds."""
    matplotlib.rcParams["svg.hashsalt"] = "ksurgeon"
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for axes, kind in zip(panels, KINDS, strict=True):
        curves = {"unpermuted": "unpermuted", **{arm: f"{kind}-{arm}" for arm in ARMS}}
        for number, (label, name) in enumerate(curves.items()):
            seeds = results["variants"].get(name, {}).get("seeds", {}).values()
            runs = [points for done in seeds if (points := curve(done))]
            if runs:
                mean = [(fmean(s for s, _ in at), fmean(a for _, a in at)) for at in zip(*runs, strict=False)]
                style = {"color": GREY, "linestyle": "--"} if not number else {"color": _colour(number)}
                axes.plot(*zip(*mean, strict=True), label=label, linewidth=1.4, **style)
        axes.set_title(KINDS[kind])
        axes.set_xlabel("seconds of training")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("held-out accuracy")
    panels[-1].legend(frameon=False, fontsize=7)
    figure.savefig(file, metadata={"Date": None})


def _colour(number: int) -> str:
    return (*COLOURS, "#8c6d31")[number - 1]


def seconds(done: Results) -> float:
    """Of surgery and all stages."""
    return done["surgery_seconds"] + sum(stage["seconds"] for stage in done["training"])


def curve(done: Results) -> list[tuple[float, float]]:
    """Seconds and accuracy of every evaluation that tells one."""
    points, before = [], done["surgery_seconds"]
    for stage in done["training"]:
        for one in stage["history"]:
            accuracy = Evaluation(**one).student.get("accuracy")
            if accuracy is not None and (one["step"] or not points):
                points.append((before + one["seconds"], accuracy))
        before += stage["seconds"]
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a run of the recipe")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/permuted_images.json"))
    parser.add_argument("--pictures", type=Path, default=Path("docs"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads((given.run / "results.json").read_text())
    if results["recipe"] != "permuted_images" or results.get("quick"):
        raise SystemExit(f"{given.run} is not of a whole run of permuted_images; name the folder of one")
    print(table(results), end="")
    draw_accuracy(results, given.pictures / "permuted-accuracy.svg")
    recipe = recipe_named("permuted_images")
    places = {name: str(place) for name, place in prepared(recipe).items()}
    draw_images(recipe, results, given.run, places, given.pictures / "permuted.png")
    given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
