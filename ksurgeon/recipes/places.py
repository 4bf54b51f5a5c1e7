"""What the texts of a recipe stand for: places in braces, data, and functions, which need leave."""

from collections.abc import Callable
from inspect import signature
from typing import Any

from torch import nn

from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function
from ksurgeon.recipes.schema import Recipe
from ksurgeon.rules.load import data_folder

__all__ = ["beside", "data_of", "filled", "functions_of", "is_made_by_teacher", "require_leave"]


def filled(text: str, places: dict[str, str]) -> str:
    """A text of the recipe with the places that it names in braces."""
    try:
        return text.format_map(places)
    except (KeyError, ValueError, IndexError) as error:
        raise RecipeError(
            f'"{text}" names {error}, and the recipe prepares {", ".join(places) or "nothing"}'
        ) from error


def beside(recipe: Recipe, name: str) -> str:
    """``FILE.py:function`` with the whole path, where the file lies beside the recipe; other names as is."""
    file, colon, function = name.rpartition(":")
    own = recipe.folder / file
    return f"{own.resolve()}:{function}" if colon and file.endswith(".py") and own.is_file() else name


def is_made_by_teacher(recipe: Recipe, text: str, places: dict[str, str]) -> bool:
    """Whether the data are a function that takes a ``teacher``.

    Raises:
        RecipeError: the function is not there.
    """
    name = filled(text, places)
    return _is_function(name) and "teacher" in _parameters(find_function(beside(recipe, name), RecipeError))


def data_of(recipe: Recipe, text: str, places: dict[str, str], teacher: nn.Module | None = None) -> Any:
    """Data as ``open_source`` takes them; a function is called, with the places if it takes an argument, and
    with the teacher if it has a parameter of that name.

    Raises:
        RecipeError: the function is not there, it raised, or it takes a teacher and there is none.
    """
    name = filled(text, places)
    if not _is_function(name):
        return name
    function = find_function(beside(recipe, name), RecipeError)
    asked = _parameters(function)
    if "teacher" in asked and teacher is None:
        raise RecipeError(
            f'{name} takes a teacher; only data of a training of kind = "distill" are made with one'
        )
    taught = {"teacher": teacher} if "teacher" in asked else {}
    try:
        data = function(*((places,) if asked - taught.keys() else ()), **taught)
    except Exception as error:
        raise RecipeError(f"{name} raised {type(error).__name__}: {error}") from error
    if data is None:
        raise RecipeError(f"{name} returned None; it has to return examples: is its return forgotten?")
    return data


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(signature(function).parameters)
    except (TypeError, ValueError):  # some of C's functions tell nothing
        return set()


def require_leave(recipe: Recipe, trust_remote_code: bool) -> None:
    """Return if the functions that the recipe names may be called.

    Raises:
        RecipeError: it names some, is none that ksurgeon brings along, and nobody allowed it.
    """
    functions = functions_of(recipe)
    own = recipe.folder.resolve() == data_folder("recipes").resolve()
    if functions and not own and not trust_remote_code:
        raise RecipeError(
            f"the recipe {recipe.name} would call {', '.join(functions)}, which is not done unless you "
            "ask for it: read the recipe and its functions, then give --trust-remote-code "
            "(trust_remote_code=True)"
        )


def functions_of(recipe: Recipe) -> list[str]:
    """Every function that the recipe names, once."""
    stages = (*recipe.train, *((recipe.calibrate,) if recipe.calibrate else ()))
    named = [recipe.prepare, recipe.evaluate, *(stage.transform for stage in stages)]
    named += [recipe.quick.evaluate] if recipe.quick is not None else []
    models = (recipe.model, *(variant.model for variant in recipe.variants))
    places = [model.name for model in models if model is not None] + [stage.data for stage in stages]
    places += [stage.test for stage in recipe.train if stage.test is not None]
    named += [name for stage in recipe.train for name in (stage.test_transform, stage.loss)]
    named += [name for name in places if _is_function(name)]
    return list(dict.fromkeys(name for name in named if name))


def _is_function(name: str) -> bool:
    """Whether a model or data are what a Python function gives."""
    prefix, colon, _ = name.partition(":")
    return bool(colon) and prefix not in ("timm", "torchvision", "hf", "datasets")
