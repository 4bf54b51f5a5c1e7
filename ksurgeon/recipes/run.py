"""Carry out a recipe: surgery, training and evaluation of every variant, and a results file."""

import json
import os
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ksurgeon.errors import FolderError, RecipeError
from ksurgeon.kernels.cache import cache_folder, cpu_model
from ksurgeon.models.functions import find_function
from ksurgeon.models.opening import LoadedModel, open_model
from ksurgeon.recipes.operate import filled, operate
from ksurgeon.recipes.prune import count_nonzero
from ksurgeon.recipes.schema import Recipe, TrainStage, Variant
from ksurgeon.surgery.record import record_of
from ksurgeon.surgery.storage import save
from ksurgeon.train.distill import Trained, distill, finetune
from ksurgeon.train.log import Listener
from ksurgeon.train.processes import device_of
from ksurgeon.train.settings import make_settings

__all__ = ["RESULTS", "run_recipe"]

RESULTS = "results.json"
Results = dict[str, Any]


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    only: tuple[str, ...] = (),
    resume: bool = False,
    device: str | None = None,
    listener: Listener | None = None,
    **options: Any,
) -> Results:
    """Carry out a recipe in a folder, which gets ``results.json`` and the students.

    Args:
        only: names of the variants to do; all if left out.
        resume: leave out variants whose results are there, and go on with a training from its checkpoint.
        device: "cpu" keeps off GPUs; left out, surgery and training run on a GPU if there is one.
        options: settings that go over those of every training.

    Raises:
        RecipeError: a variant that there is not, or a function that is not there or raised.
    """
    unknown = set(only) - {variant.name for variant in recipe.variants}
    if unknown:
        names = ", ".join(variant.name for variant in recipe.variants)
        raise RecipeError(f"there is no variant {', '.join(sorted(unknown))}; the recipe has {names}")
    for stage in recipe.train:
        make_settings(**{**stage.settings, **options})
    told = listener or Listener()
    places = _prepare(recipe, told)
    source = _open(recipe, places, device_of(device))
    for note in source.notes:
        told.note(note)
    file = folder / RESULTS
    results = _begin(recipe, file, resume)
    if not results.get("dense", {}).get("metrics"):
        results["dense"] = {
            "parameters": _count(source.model),
            "metrics": _evaluate(recipe, source.model, places, told, "the original"),
        }
    for variant in recipe.variants:
        if (only and variant.name not in only) or (resume and variant.name in results["variants"]):
            continue
        told.note(f"variant {variant.name}")
        done = _one(recipe, variant, source, places, folder, resume, told, device, options)
        results["variants"][variant.name] = done
        _write(file, results)
    return results


def _one(
    recipe: Recipe,
    variant: Variant,
    source: LoadedModel,
    places: dict[str, str],
    folder: Path,
    resume: bool,
    told: Listener,
    device: str | None,
    options: dict[str, Any],
) -> Results:
    begin = time.perf_counter()
    student = operate(recipe, variant, source, places, folder, resume, told)
    done: Results = {
        "parameters": count_nonzero(student),
        "surgery_seconds": time.perf_counter() - begin,
        "device": str(device_of(device)),
        "after_surgery": _evaluate(recipe, student, places, told, f"{variant.name} after surgery"),
        "training": [],
    }
    place = folder / variant.name
    for number, stage in enumerate(recipe.train):
        work = folder / f"{variant.name}.training" / str(number)
        trained = _train(recipe, stage, student, source.model, places, work, resume, told, device, options)
        done["training"].append(_plain(stage, options, trained))
    done["after_training"] = _evaluate(recipe, student, places, told, f"{variant.name} after training")
    if record_of(student) is not None:
        named = source.source.name if source.source.kind == "transformers" else None
        save(student, place, files_from=named)
    return done


def _train(
    recipe: Recipe,
    stage: TrainStage,
    student: nn.Module,
    teacher: nn.Module,
    places: dict[str, str],
    work: Path,
    resume: bool,
    told: Listener,
    device: str | None,
    options: dict[str, Any],
) -> Trained:
    settings = {"seed": recipe.seed, **stage.settings, **options}
    common: dict[str, Any] = {
        "folder": work,
        "resume": resume and work.is_dir(),
        "listener": told,
        "device": device,
        **settings,
    }
    if stage.transform is not None:
        common["preprocessor"] = find_function(stage.transform, RecipeError, recipe.folder)
    data = filled(stage.data, places)
    if stage.kind == "finetune":
        return finetune(student, data, **common)
    return distill(student, teacher, data, **common)


def _plain(stage: TrainStage, options: dict[str, Any], trained: Trained) -> Results:
    return {
        "kind": stage.kind,
        "settings": {**stage.settings, **options},
        "steps": trained.steps,
        "seconds": trained.seconds,
        "examples_per_second": trained.rate,
        "history": [asdict(evaluation) for evaluation in trained.history],
        "layers": [asdict(layer) for layer in trained.layers],
        "broken": len(trained.broken),
    }


def _prepare(recipe: Recipe, told: Listener) -> dict[str, str]:
    if recipe.prepare is None:
        return {}
    function = find_function(recipe.prepare, RecipeError, recipe.folder)
    told.note(f"preparing data and models of {recipe.name}")
    place = cache_folder() / "recipes" / recipe.name
    place.mkdir(parents=True, exist_ok=True)
    try:
        return {name: str(value) for name, value in function(place).items()}
    except Exception as error:
        raise RecipeError(f"{recipe.prepare} raised {type(error).__name__}: {error}") from error


def _open(recipe: Recipe, places: dict[str, str], device: torch.device) -> LoadedModel:
    model = recipe.model
    loaded = open_model(
        filled(model.name, places),
        weights=filled(model.weights, places),
        seed=recipe.seed,
        input_size=model.input_size,
    )
    inputs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), loaded.example_inputs)
    return replace(loaded, model=loaded.model.to(device), example_inputs=inputs)


def _evaluate(
    recipe: Recipe, model: nn.Module, places: dict[str, str], told: Listener, what: str
) -> dict[str, float]:
    if recipe.evaluate is None:
        return {}
    function = find_function(recipe.evaluate, RecipeError, recipe.folder)
    told.note(f"evaluating {what}")
    try:
        metrics = {name: float(value) for name, value in function(model.eval(), places).items()}
    except Exception as error:
        raise RecipeError(f"{recipe.evaluate} raised {type(error).__name__}: {error}") from error
    told.note(f"{what}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    return metrics


def _begin(recipe: Recipe, file: Path, resume: bool) -> Results:
    if resume and file.is_file():
        results: Results = json.loads(file.read_text(encoding="utf-8"))
        return results
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "machine": {
            "processor": cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "train": [stage.model_dump(mode="json") for stage in recipe.train],
        "variants": {},
    }


def _write(file: Path, results: Results) -> None:
    part = file.with_suffix(".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        os.replace(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise FolderError(f"{file} could not be written: {error.strerror}") from error


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
