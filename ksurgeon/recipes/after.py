"""What is to be done where variants begin with the trained models of others."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ksurgeon.errors import RecipeError
from ksurgeon.recipes.schema import Recipe, Variant
from ksurgeon.surgery.tensors import TENSOR_FILE

__all__ = ["BEGAN", "MODEL", "is_followed", "model_file", "pending", "sha256_of"]

MODEL, BEGAN = "model_sha256", "began_with_sha256"
"""In a variant's results for a seed: its trained model, and the one that it began with."""

Results = dict[str, Any]


def model_file(place: Path) -> Path:
    """The weights that others begin with, of a variant and seed whose folder is ``place``."""
    return place / TENSOR_FILE


def sha256_of(file: Path) -> str:
    """Of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_followed(recipe: Recipe, variant: Variant) -> bool:
    """Whether another variant begins with its model."""
    return any(other.after == variant.name for other in recipe.variants)


def pending(
    recipe: Recipe, variants: Sequence[Variant], results: Results, folder: Path
) -> list[tuple[int, Variant]]:
    """Seeds and variants that are to be done, in the recipe's order.

    Those without results; those that began with another model than the one that is there, or is trained now;
    and those whose results are there and whose model, with which one of them begins, is not.

    Raises:
        RecipeError: one of them begins with a model that is not there, of a variant that is not among them.
    """
    found = []
    for seed in recipe.all_seeds:
        names = _of_seed(recipe, variants, results, folder, seed)
        found += [(seed, variant) for variant in variants if variant.name in names]
    return found


def _of_seed(
    recipe: Recipe, variants: Sequence[Variant], results: Results, folder: Path, seed: int
) -> set[str]:
    def done(name: str) -> Results | None:
        variant = results["variants"].get(name)
        if recipe.seeds and variant:
            variant = variant["seeds"].get(str(seed))
        return variant or None

    chosen = {variant.name for variant in variants}
    names = {name for name in chosen if done(name) is None}
    number = -1
    while number != len(names):
        number = len(names)
        for variant in variants:
            if variant.after is None:
                continue
            known, own = (done(variant.after) or {}).get(MODEL), done(variant.name)
            if variant.after in names or (own is not None and own.get(BEGAN) != known):
                names.add(variant.name)
            file = model_file(folder / variant.after / f"seed-{seed}")
            there = known is not None and file.is_file() and sha256_of(file) == known
            if variant.name in names and variant.after not in names and not there:
                if variant.after not in chosen:
                    raise RecipeError(
                        f"variant {variant.name} begins with the trained model of {variant.after}, and the "
                        f"one of these results is not in {file}; do that variant too (--only {variant.after})"
                    )
                names.add(variant.after)
    return names
