"""Carry out a recipe: surgery, training and evaluation of every variant, and a results file."""

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ksurgeon.errors import FolderError, RecipeError, TrainingStopped
from ksurgeon.files import parse_json, read_regular
from ksurgeon.kernels.cache import cache_folder, cpu_model
from ksurgeon.models.functions import find_function
from ksurgeon.recipes.after import pending
from ksurgeon.recipes.digest import digest_of, forget
from ksurgeon.recipes.job import Job, carry_out, evaluate
from ksurgeon.recipes.places import require_leave
from ksurgeon.recipes.pool import carry_out_all
from ksurgeon.recipes.schema import Recipe, Variant
from ksurgeon.recipes.scratch import check_and_measure, opened, settings_of
from ksurgeon.recipes.statistics import statistics_of
from ksurgeon.train.log import Evaluation, Listener
from ksurgeon.train.processes import device_of
from ksurgeon.workers import cores

__all__ = ["RESULTS", "require_own", "run_recipe"]

RESULTS = "results.json"
Results = dict[str, Any]
_LARGEST = 2**28


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    only: tuple[str, ...] = (),
    quick: bool = False,
    seeds: int | None = None,
    jobs: int | None = None,
    resume: bool = False,
    device: str | None = None,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
    progress: Callable[[Results], object] = lambda _: None,
    **options: Any,
) -> Results:
    """Carry out a recipe in a folder, which gets ``results.json`` and the students.

    Args:
        only: names of the variants to do; all if left out.
        quick: whether to carry out what the recipe's table ``[quick]`` makes of it; the results say so.
        seeds: in place of the recipe's; seeds that are done stay done.
        jobs: processes side by side, with one thread each if they are several; left out, as many as there
            are cores where models are trained from scratch, otherwise one.
        resume: leave out variants whose results are there, and go on with a training from its checkpoint.
        device: "cpu" keeps off GPUs; left out, surgery and training run on a GPU if there is one.
        trust_remote_code: whether functions that the recipe names may be called; a built-in recipe needs no
            leave.
        progress: is given the results so far whenever they are written.
        options: settings that go over those of every training.

    Raises:
        RecipeError: a variant or a quick run that there is not, or a function that may not run, is not there
            or raised; of trainings side by side, the others are done before.
        FolderError: the folder holds results of another recipe, or of the whole one where a quick run is
            asked for, and the other way round.
    """
    require_leave(recipe, trust_remote_code)
    if quick:
        recipe = recipe.quickened()
        assert recipe.quick is not None
        only, options = only or recipe.quick.only, recipe.quick.settings | options
    if recipe.is_from_scratch or seeds is not None:
        recipe = recipe.model_copy(update={"seeds": seeds or recipe.seeds or 1})
    unknown = set(only) - {variant.name for variant in recipe.variants}
    if unknown:
        names = ", ".join(variant.name for variant in recipe.variants)
        raise RecipeError(f"there is no variant {', '.join(sorted(unknown))}; the recipe has {names}")
    for variant in recipe.variants:
        for stage in recipe.stages_of(variant):
            settings_of(recipe, variant, stage, options)
            if stage.loss is not None:
                find_function(stage.loss, RecipeError, recipe.folder)
            if recipe.seeds and "seed" in stage.settings | variant.settings | options:
                raise RecipeError(
                    "seed as a setting of a training would be that of all its seeds; give seed and seeds at "
                    "the top of the recipe"
                )
    file = folder / RESULTS
    variants = [variant for variant in recipe.variants if not only or variant.name in only]
    results, anew = _begin(recipe, variants, file, resume, options, quick)
    told = listener or Listener()
    places = _prepare(recipe, told)
    undone = pending(recipe, variants, results, folder)
    source = None
    if not recipe.is_from_scratch:
        source = opened(recipe, recipe.variants[0], places, device_of(device), trust_remote_code)
        for note in source.notes:
            told.note(note)
        if not results.get("dense", {}).get("metrics"):
            results["dense"] = {
                "parameters": _count(source.model),
                "metrics": evaluate(recipe, source.model, places, told, "the original")[0],
            }
    else:
        known = results["variants"]
        wanted = {"parameters", "latency"} if recipe.latency else {"parameters"}
        fresh = [variant for variant in variants if not wanted <= set(known.get(variant.name, ()))]
        measured = check_and_measure(recipe, fresh, places, folder, told, options, trust_remote_code)
        for name, found in measured.items():
            known[name] = {"seeds": {}, **known.get(name, {}), **found}
    for variant in anew:
        forget(folder, variant)
    if recipe.seeds:
        _write(file, results)
    work = [
        Job(
            recipe=recipe.model_copy(update={"seed": seed}),
            variant=variant,
            place=folder / variant.name / f"seed-{seed}" if recipe.seeds else folder / variant.name,
            places=places,
            resume=resume,
            device=device,
            options=options,
            trust_remote_code=trust_remote_code,
        )
        for seed, variant in undone
    ]
    failures: dict[str, str] = {}

    def finished(job: Job, done: Results | None, failure: str) -> None:
        if done is None:
            failures[job.name] = failure
            told.note(f"{job.name} failed: {failure}")
            return
        _store(results, job, done)
        _write(file, results)
        progress(results)

    count = jobs or (cores() if recipe.is_from_scratch else 1)
    if count == 1 and not recipe.seeds:
        for job in work:
            told.note(f"variant {job.variant.name}")
            finished(job, carry_out(job, told, source), "")
        return results
    try:
        carry_out_all(work, count, told, finished)
    except KeyboardInterrupt:
        raise TrainingStopped(
            f"interrupted; the trainings that are done stand in {file}, and the others go on from their last "
            "checkpoints with --resume"
        ) from None
    if failures:
        raise RecipeError(
            f"{len(failures)} of {len(work)} trainings failed, the others are done; --resume tries them "
            "again:\n" + "\n".join(f"{name}: {failure}" for name, failure in failures.items())
        )
    return results


def _store(results: Results, job: Job, done: Results) -> None:
    """Put what a job came to in its place, and bring the statistics up to date."""
    name, variants = job.variant.name, results["variants"]
    if not job.recipe.seeds:
        variants[name] = done
        return
    variant = variants.setdefault(name, {"parameters": done["parameters"], "seeds": {}})
    variant["seeds"][str(job.recipe.seed)] = done
    variant["seeds"] = dict(sorted(variant["seeds"].items(), key=lambda item: int(item[0])))
    results["statistics"] = statistics_of(results)


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


def _begin(
    recipe: Recipe,
    variants: list[Variant],
    file: Path,
    resume: bool,
    options: dict[str, Any],
    quick: bool,
) -> tuple[Results, list[Variant]]:
    """The results that are there, or none yet; and the variants that begin now, which have no checkpoints."""
    counted = [*filter(None, map(recipe.before, variants)), *variants] if recipe.seeds else []
    own = {variant.name: digest_of(recipe, variant, options) for variant in counted}
    results = require_own(recipe, file, quick)
    if resume and results is not None:
        before = results["digests"] if recipe.seeds else own
        for name, digest in own.items():
            if before.get(name, digest) != digest:
                raise FolderError(
                    f"{file} has results of another variant {name}: the recipe, a file that it names, or "
                    "settings were changed; give another folder with -o, or the variant another name"
                )
        here, known = _machine(), [results.get("machine"), *results.get("resumed_on", [])]
        if here not in known:
            results["resumed_on"] = [*known[1:], here]
        if recipe.seeds:
            results["digests"] = before | own
            results.update(_baselines(recipe))
            results["statistics"] = statistics_of(results)
        return results, [variant for variant in variants if own and variant.name not in before]
    axis = {**_baselines(recipe), "digests": own, "statistics": {}}
    anew = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        **({"quick": True} if quick else {}),
        **(axis if recipe.seeds else {}),
        "machine": _machine(),
        "train": [stage.model_dump(mode="json") for stage in recipe.train],
        "variants": {},
    }
    return anew, [] if resume else variants


def _baselines(recipe: Recipe) -> Results:
    """What all variants are compared with, and by name what some are in its place."""
    own = {variant.name: variant.baseline for variant in recipe.variants if variant.baseline is not None}
    return {"baseline": recipe.baseline or recipe.variants[0].name, "baselines": own}


def _machine() -> dict[str, Any]:
    return {
        "processor": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def require_own(recipe: Recipe, file: Path, quick: bool = False) -> Results | None:
    """The results in a file, if there are some.

    Raises:
        FolderError: they are of another recipe, of another kind than this one would write, of a whole run
            where this one is quick or the other way round, or damaged.
    """
    if not file.is_file():
        return None
    try:
        results: Results = parse_json(read_regular(file, _LARGEST))
        same = results["recipe"] == recipe.name and ("statistics" in results) == bool(recipe.seeds)
        is_quick = bool(results.get("quick"))
        if same:
            _require_form(results)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FolderError(f"{file} is damaged: {error}; remove it, or give another folder with -o") from error
    if not same:
        raise FolderError(
            f"{file} holds the results of {results['recipe']}, or of a run with"
            f"{'out' if recipe.seeds else ''} --seeds, which are not overwritten; give another folder with -o"
        )
    if is_quick != quick:
        kinds = ("a quick run", "the whole recipe") if is_quick else ("the whole recipe", "a quick run")
        raise FolderError(
            f"{file} holds results of {kinds[0]}, which do not go together with those of {kinds[1]}; give "
            "another folder with -o"
        )
    return results


def _require_form(results: Results) -> None:
    """Return if what is read of results is there; otherwise an error of Python tells what lacks."""
    has_seeds = "statistics" in results
    if has_seeds:
        statistics_of(results)
        dict(results["digests"])
    dict(results.get("dense", {}).get("metrics", {}))
    for variant in results["variants"].values():
        int(variant["parameters"])
        for done in variant["seeds"].values() if has_seeds else [variant]:
            dict(done["after_training"])
            for stage in done["training"]:
                [Evaluation(**one) for one in stage["history"]]


def _write(file: Path, results: Results) -> None:
    part = file.with_suffix(".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        os.replace(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise FolderError(f"{file} could not be written: {error.strerror}") from error


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
