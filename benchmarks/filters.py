"""What the front end of the recipe speech learns, as a picture: ``python -m benchmarks.filters [--seed N]``.

Trains a variant, k-transform or k-exact, once more and draws ``docs/filters.png``: what each feature answers
to tones of all frequencies, before and after; some of its filters in time; and one utterance of the test
through both.
"""

import argparse
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.prepared import prepared, recipe_named
from ksurgeon import finetune
from ksurgeon.errors import RecipeError
from ksurgeon.frontend import KFrontend
from ksurgeon.models.functions import find_function
from ksurgeon.recipes.scratch import opened, settings_of, stage_data
from ksurgeon.report.figures import COLOURS, GREY
from ksurgeon.train.log import Listener

__all__ = ["main", "quadratic_forms", "responses", "trained"]

_RATE = 16_000
_TONES = 400
_SHOWN = (4, 14, 24, 34)  # features whose filters are shown in time


def trained(seed: int, name: str = "k-exact", **settings: Any) -> tuple[nn.Module, nn.Module, dict[str, str]]:
    """The recogniser of a variant before and after its training, and where the recipe's data lie.

    Args:
        settings: over those of the recipe.
    """
    recipe = recipe_named("speech").model_copy(update={"seed": seed})
    (variant,) = (v for v in recipe.variants if v.name == name)
    places = {name: str(file) for name, file in prepared(recipe).items()}
    model = opened(recipe, variant, places, torch.device("cpu")).model
    before, (stage,) = deepcopy(model), recipe.stages_of(variant)
    chosen = settings_of(recipe, variant, stage, settings)
    data = replace(stage_data(recipe, stage, model, places, chosen), seed=chosen.seed)
    finetune(model, data, settings=chosen, listener=Listener(), device="cpu")
    return before.eval(), model.eval(), places


@torch.no_grad()
def quadratic_forms(frontend: KFrontend) -> Tensor:
    """``A`` ``(features, samples, samples)``: a feature before the logarithm is the energy xᵀ A x of the
    samples x of its frame."""
    size = len(frontend.window)
    linear = replace(frontend.pipeline, power=None, parts=True, filters=None, log=None, floor=0.0, steps=())
    plain = KFrontend(linear, radices=frontend.dft.radices, symmetric=frontend.dft.symmetric)
    plain.dft.load_state_dict(frontend.dft.state_dict())
    spectrum = plain(torch.eye(size))[:, 0].double()  # (samples, bins, parts)
    assert frontend.filters is not None
    weights = frontend.filters.to_dense().double()
    return torch.einsum("mk,skp,tkp->mst", weights, spectrum, spectrum)


def responses(forms: Tensor, frequencies: Tensor) -> Tensor:
    """Energies ``(features, frequencies)`` of tones of amplitude one, the mean over their phases."""
    time = torch.arange(forms.shape[-1], dtype=forms.dtype) / _RATE
    turns = 2 * torch.pi * frequencies.to(forms)[:, None] * time
    waves = torch.stack([turns.sin(), turns.cos()])
    return torch.einsum("pfs,mst,pft->mf", waves, forms, waves) / 2


def _in_decibels(energies: Tensor) -> Tensor:
    """Below the largest of each feature."""
    shares = energies.clamp_min(0) / energies.amax(-1, keepdim=True)
    return 10 * shares.clamp_min(1e-6).log10()


def _main_filter(form: Tensor) -> Tensor:
    """The frame of length one to which a feature answers most, its largest sample positive."""
    found = torch.linalg.eigh(form).eigenvectors[:, -1]
    return found * found[found.abs().argmax()].sign()


def draw(before: Any, after: Any, wave: Tensor, file: Path) -> None:
    """The picture, from the recogniser before and after its training and an utterance."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    tones = torch.linspace(0, _RATE / 2, _TONES)
    forms = [quadratic_forms(model.frontend) for model in (before, after)]
    grid = figure.add_gridspec(4, 2, height_ratios=(2, 2, 1.6, 1.6))
    for column, (form, title) in enumerate(zip(forms, ("mel filters", "learned"), strict=True)):
        axes = figure.add_subplot(grid[0, column])
        shown = axes.imshow(
            _in_decibels(responses(form, tones)),
            origin="lower", aspect="auto", extent=(0, _RATE / 2000, 0, len(form)), vmin=-50, vmax=0,
        )  # fmt: skip
        axes.set(title=title, xlabel="frequency of a tone, kHz", ylabel="feature")
        figure.colorbar(shown, ax=axes, label="dB")
    axes = figure.add_subplot(grid[1, 0])
    for colour, number in zip(COLOURS, _SHOWN, strict=False):
        for form, style in zip(
            forms, ({"color": GREY}, {"color": colour, "label": str(number)}), strict=True
        ):
            axes.plot(
                tones / 1000, _in_decibels(responses(form[number : number + 1], tones))[0], lw=1, **style
            )
    axes.set(xlabel="frequency, kHz", ylabel="dB", ylim=(-50, 2), title="features, grey before the training")
    axes.legend(fontsize="small")
    inside = grid[1, 1].subgridspec(len(_SHOWN), 1)
    for row, (colour, number) in enumerate(zip(COLOURS, _SHOWN, strict=False)):
        axes = figure.add_subplot(inside[row])
        for form, style in zip(forms, ({"color": GREY}, {"color": colour}), strict=True):
            axes.plot(torch.arange(form.shape[-1]) / 16, _main_filter(form[number]), lw=0.8, **style)
        axes.set(yticks=[], ylabel=str(number), xlabel="ms" if row == len(_SHOWN) - 1 else "")
        if not row:
            axes.set_title("the same in time")
    for row, (model, title) in enumerate(zip((before, after), ("mel filters", "learned"), strict=True)):
        with torch.no_grad():
            features = model.norm(model.frontend(wave[None]).transpose(1, 2))[0]
        axes = figure.add_subplot(grid[2 + row, :])
        axes.imshow(
            features, origin="lower", aspect="auto", extent=(0, features.shape[1] / 100, 0, len(features)),
            vmin=-2, vmax=2,
        )  # fmt: skip
        axes.set(title=f"an utterance, {title}", xlabel="s" if row else "", ylabel="feature")
    figure.savefig(file, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variant", choices=["k-transform", "k-exact"], default="k-transform")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--file", type=Path, default=Path(__file__).parents[1] / "docs" / "filters.png")
    options = parser.parse_args()
    given = {} if options.epochs is None else {"epochs": options.epochs}
    before, after, places = trained(options.seed, options.variant, **given)
    corpus = find_function("speech.py:corpus", RecipeError, recipe_named("speech").folder)
    draw(before, after, corpus(places["speech"]).test[0].wave, options.file)


if __name__ == "__main__":
    main()
