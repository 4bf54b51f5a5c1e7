"""What a recipe says of models that are trained from scratch, before any of them is trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from ksurgeon.calibrate.crops import crops
from ksurgeon.errors import KsurgeonError, RecipeError
from ksurgeon.models.functions import find_function
from ksurgeon.models.names import parse
from ksurgeon.models.opening import LoadedModel, open_model
from ksurgeon.recipes.operate import operate
from ksurgeon.recipes.places import beside, data_of, filled, is_made_by_teacher
from ksurgeon.recipes.prune import count_nonzero
from ksurgeon.recipes.schema import Recipe, TrainStage, Variant
from ksurgeon.report.measure import milliseconds, multiplications, quartiles
from ksurgeon.train.check import check_examples
from ksurgeon.train.data import Data, open_data
from ksurgeon.train.log import Listener
from ksurgeon.train.settings import Settings, make_settings

__all__ = ["FROM_SCRATCH", "check_and_measure", "opened", "settings_of", "stage_data"]

# What is compared is trained as papers train: the last weights, with no average and no clipping.
FROM_SCRATCH = {"task": "classification", "final": "last", "ema": 0.0, "clip": 0.0, "balance_factors": 0}
_ROUNDS = 15


def settings_of(recipe: Recipe, variant: Variant, stage: TrainStage, options: dict[str, Any]) -> Settings:
    """Those of the stage, with the variant's over them, and ``options`` over both."""
    defaults = FROM_SCRATCH if recipe.is_from_scratch else {}
    return make_settings(**{"seed": recipe.seed, **defaults, **stage.settings, **variant.settings, **options})


def opened(
    recipe: Recipe,
    variant: Variant,
    places: dict[str, str],
    device: torch.device,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """The variant's model before surgery; anew from the recipe's seed where it is trained from scratch."""
    model = recipe.model_of(variant)
    name = beside(recipe, filled(model.name, places))
    leave = {"trust_remote_code": True} if trust_remote_code and parse(name)[0] == "transformers" else {}
    weights = "random" if recipe.is_from_scratch and model.weights == "auto" else model.weights
    loaded = open_model(
        name,
        weights=filled(weights, places),
        seed=recipe.seed,
        options={
            **{n: filled(v, places) if isinstance(v, str) else v for n, v in model.options.items()},
            **leave,
        },
        input_size=model.input_size,
    )
    return replace(loaded, model=loaded.model.to(device))


def stage_data(
    recipe: Recipe,
    stage: TrainStage,
    model: nn.Module,
    places: dict[str, str],
    settings: Settings,
    teacher: nn.Module | None = None,
) -> Data:
    """The stage's data for a model, with the transforms that the recipe names.

    Args:
        teacher: is given to a function that makes the data with it.
    """
    transform, test_transform = (
        name and find_function(name, RecipeError, recipe.folder)
        for name in (stage.transform, stage.test_transform)
    )
    if stage.crop is not None:
        transform, test_transform = crops(**stage.crop.model_dump())
    return open_data(
        data_of(recipe, stage.data, places, teacher),
        model,
        settings,
        preprocessor=transform,
        test=stage.test and data_of(recipe, stage.test, places),
        test_preprocessor=test_transform,
    )


def check_and_measure(
    recipe: Recipe,
    variants: list[Variant],
    places: dict[str, str],
    folder: Path,
    told: Listener,
    options: dict[str, Any],
    trust_remote_code: bool = False,
) -> dict[str, dict[str, Any]]:
    """Parameters, multiplications and, where it is asked for, latency of each variant's model.

    Each model is made as for the first seed, and is given examples of its data.

    Raises:
        RecipeError: a model cannot be made, or the data are not sound; the message names the variant.
    """
    found: dict[str, dict[str, Any]] = {}
    models = {}
    told.stage("checking models and data", len(variants))
    for number, variant in enumerate(variants):
        told.part(number, variant.name)
        try:
            source = opened(recipe, variant, places, torch.device("cpu"), trust_remote_code)
            model = operate(recipe, variant, source, places, folder, False, Listener())
            for stage in recipe.stages_of(variant):
                settings = settings_of(recipe, variant, stage, options)
                if is_made_by_teacher(recipe, stage.data, places):  # which has not learned anything yet
                    continue
                data = stage_data(recipe, stage, model, places, settings)
                loss = find_function(stage.loss, RecipeError, recipe.folder) if stage.loss else None
                check_examples(data, model, loss)
            inputs = source.example_inputs
        except KsurgeonError as error:
            raise RecipeError(f"variant {variant.name}: {error}") from error
        found[variant.name] = {
            "parameters": count_nonzero(model),
            "multiplications": multiplications(model, inputs),
        }
        if recipe.latency:
            models[variant.name] = (model, inputs)
    if models:
        told.note("measuring latency: one example on one CPU thread, models interleaved")
    with _one_thread():
        rounds = [{n: milliseconds(*each) for n, each in models.items()} for _ in range(_ROUNDS)]
    for name in models:
        times = [one[name] for one in rounds]
        found[name]["latency"] = {"milliseconds": median(times), "quartiles": quartiles(times)}
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
