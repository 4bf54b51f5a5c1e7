"""Whether results and checkpoints are still those of the recipe, and the files that it names."""

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ksurgeon.errors import RuleError
from ksurgeon.models.functions import working_directory
from ksurgeon.recipes.places import functions_of
from ksurgeon.recipes.schema import Recipe, TrainStage, Variant
from ksurgeon.recipes.scratch import FROM_SCRATCH
from ksurgeon.rules.load import find_rule_file

__all__ = ["digest_of", "forget"]


def digest_of(recipe: Recipe, variant: Variant, options: dict[str, Any]) -> str:
    """Tells whether a variant's results are still those of the recipe, whatever other variants it has.

    What its functions, rule and plan say counts too; what ``prepare`` puts somewhere does not, nor modules
    that the functions import.
    """
    free = {"folder", "summary", "seeds", "baseline", "latency", "variants", "train", "quick"}
    stages = [_told(stage) for stage in recipe.stages_of(variant)]
    defaults = FROM_SCRATCH if recipe.is_from_scratch else {}
    parts = {**recipe.model_dump(mode="json", exclude=free), "train": stages, "defaults": defaults}
    own = variant.model_dump(mode="json", exclude={"baseline", *_unset(variant)})
    for part in own["replace"]:
        if not part["untie"]:
            del part["untie"]  # earlier versions did not know it
    told: list[Any] = [parts, own, options]
    before = recipe.before(variant)
    if before is not None:
        told.append(digest_of(recipe, before, options))
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for file in _files(recipe, variant):
        with suppress(OSError):  # told by what needs it
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _unset(variant: Variant) -> list[str]:
    """Of a variant, what earlier versions did not know, where it changes nothing."""
    return [name for name in ("options", "settings", "after") if not getattr(variant, name)]


def _told(stage: TrainStage) -> dict[str, Any]:
    """A stage, without what earlier versions did not know where that changes nothing."""
    told = stage.model_dump(mode="json", exclude={"only"})
    unset = {"loss": None, "trials": 1}
    return {name: value for name, value in told.items() if name not in unset or value != unset[name]}


def forget(folder: Path, variant: Variant) -> None:
    """Remove the checkpoints of earlier trainings of a variant of that name."""
    for place in (folder / f"{variant.name}.training", *(folder / variant.name).glob("seed-*.training")):
        shutil.rmtree(place, ignore_errors=True)


def _files(recipe: Recipe, variant: Variant) -> Iterator[Path]:
    for name in functions_of(recipe.model_copy(update={"variants": (variant,), "quick": None})):
        place = name.rpartition(":")[0]
        if place.endswith(".py"):
            own = recipe.folder / place
            yield own if own.is_file() else Path(place)
            continue
        with suppress(ImportError, ValueError), working_directory():
            spec = importlib.util.find_spec(place)
            if spec is not None and spec.origin is not None:
                yield Path(spec.origin)
    if variant.plan is not None:
        yield recipe.folder / variant.plan
    if variant.rule is not None:
        own = recipe.folder / variant.rule
        with suppress(RuleError):
            yield own if own.is_file() else find_rule_file(variant.rule)
