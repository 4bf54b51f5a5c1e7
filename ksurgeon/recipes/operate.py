"""The surgery of a recipe's variant."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ksurgeon.errors import PlanError, RecipeError
from ksurgeon.models.functions import find_function
from ksurgeon.models.opening import LoadedModel
from ksurgeon.planner import plan
from ksurgeon.recipes.places import data_of, filled
from ksurgeon.recipes.prune import prune
from ksurgeon.recipes.schema import Calibration, Recipe, Search, Variant
from ksurgeon.rules.files import read_plan, write_plan
from ksurgeon.rules.load import load_rule
from ksurgeon.rules.plan import Plan
from ksurgeon.rules.schema import Rule
from ksurgeon.surgery.convert import convert
from ksurgeon.train.data import open_data
from ksurgeon.train.log import Listener
from ksurgeon.train.settings import make_settings

__all__ = ["operate"]


def operate(
    recipe: Recipe,
    variant: Variant,
    source: LoadedModel,
    places: dict[str, str],
    folder: Path,
    resume: bool,
    told: Listener,
) -> nn.Module:
    """A copy of the model after the variant's surgery.

    A plan that is searched for is written to ``folder``, as ``VARIANT.plan.toml``; with ``resume``, one that
    the same search has found before is taken, as a new one would find another where times are measured.

    Raises:
        RecipeError: a search found no plan within its budget.
    """
    student = deepcopy(source.model)
    if variant.prune is not None:
        prune(student, variant.prune.targets, variant.prune.share)
        return student
    if not (variant.rule or variant.plan or variant.search or variant.replace or variant.insert):
        return student
    options: dict[str, Any] = {"source": source.source, "seed": recipe.seed}
    if recipe.calibrate is not None:
        options["data"] = _calibration(recipe, recipe.calibrate, student, places)
        options["examples"] = recipe.calibrate.examples
        options["compensate"] = recipe.calibrate.compensate
    if variant.search is not None:
        found = _plan_of(recipe, variant, variant.search, student, options["data"], folder, resume, told)
        convert(student, found, source.example_inputs, **options)
    elif variant.plan is not None:
        given = read_plan(recipe.folder / filled(variant.plan, places))
        convert(student, given, source.example_inputs, **options)
    elif variant.replace or variant.insert:
        rule = Rule(name=variant.name, replace=variant.replace, insert=variant.insert)
        convert(student, rule, source.example_inputs, **options)
    else:
        assert variant.rule is not None
        beside = recipe.folder / filled(variant.rule, places)
        convert(
            student,
            load_rule(beside if beside.is_file() else variant.rule),
            source.example_inputs,
            **options,
        )
    return student


def _plan_of(
    recipe: Recipe,
    variant: Variant,
    search: Search,
    model: nn.Module,
    data: list[Any],
    folder: Path,
    resume: bool,
    told: Listener,
) -> Plan:
    file, asked = folder / f"{variant.name}.plan.toml", folder / f"{variant.name}.search.json"
    parts = {"search": search, "model": recipe.model_of(variant), "calibrate": recipe.calibrate}
    same = {name: part.model_dump(mode="json") for name, part in parts.items() if part is not None}
    same["seed"] = {"seed": recipe.seed}
    if resume and file.is_file() and asked.is_file() and json.loads(asked.read_text()) == same:
        told.note(f"the plan that was found before: {file}")
        return read_plan(file)
    try:
        found = _searched(recipe, search, model, data, told)
    except PlanError as error:
        raise RecipeError(f"variant {variant.name}: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    asked.unlink(missing_ok=True)
    write_plan(found, file)
    asked.write_text(json.dumps(same, indent=1) + "\n", encoding="utf-8")
    return found


def _searched(recipe: Recipe, search: Search, model: nn.Module, data: list[Any], told: Listener) -> Plan:
    last = ""

    def stage(verb: str, done: int, total: int, what: str) -> None:
        nonlocal last
        if verb != last:
            told.note(f"{verb} ({total})" if total else verb)
            last = verb

    how = search.model_dump(exclude_unset=True)
    if recipe.calibrate is not None:
        how["examples"] = recipe.calibrate.examples
    return plan(model, data=data, seed=recipe.seed, stage=stage, **how).plan


def _calibration(
    recipe: Recipe, calibration: Calibration, model: nn.Module, places: dict[str, str]
) -> list[Any]:
    """Batches of inputs, prepared as those of a training are."""
    function = calibration.transform and find_function(calibration.transform, RecipeError, recipe.folder)
    settings = make_settings(seed=recipe.seed, held_out=0, limit=20 * calibration.examples)
    data = open_data(
        data_of(recipe, calibration.data, places), model, settings, preprocessor=function or None
    )
    numbers = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(recipe.seed))
    chosen = numbers[: calibration.examples].tolist()
    return [batch["inputs"] for batch in data.batches(chosen, 16)]
