"""The data of recipes."""

from pathlib import Path

from ksurgeon.errors import RecipeError
from ksurgeon.kernels.cache import cache_folder
from ksurgeon.models.functions import find_function
from ksurgeon.recipes.schema import Recipe, load_recipe

__all__ = ["prepared", "recipe_named"]


def recipe_named(name: str) -> Recipe:
    """One of the repository's own."""
    return load_recipe(Path(__file__).parents[1] / "recipes" / f"{name}.toml")


def prepared(recipe: Recipe) -> dict[str, Path]:
    """Where the recipe's data lies, which is fetched the first time."""
    place = cache_folder() / "recipes" / recipe.name
    place.mkdir(parents=True, exist_ok=True)
    assert recipe.prepare is not None
    return {
        name: Path(file)
        for name, file in find_function(recipe.prepare, RecipeError, recipe.folder)(place).items()
    }
