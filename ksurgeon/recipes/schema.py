"""What a recipe file may say."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ksurgeon.calibrate.harm import HarmName
from ksurgeon.errors import PlanError, RecipeError
from ksurgeon.planner import Budget
from ksurgeon.planner.options import FAMILIES
from ksurgeon.rules.load import data_folder
from ksurgeon.rules.schema import Replacement, Target

__all__ = ["Calibration", "Model", "Prune", "Recipe", "Search", "TrainStage", "Variant", "load_recipe"]


class _Base(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(_Base):
    """The model before surgery; ``name`` and ``weights`` as every command takes them."""

    name: str
    weights: str = "auto"
    input_size: int | tuple[int, ...] | None = None


class Prune(_Base):
    """Magnitude pruning in place of surgery, to compare with: ``share`` of each layer's weights stays."""

    targets: Annotated[tuple[Target, ...], Field(min_length=1)]
    share: Annotated[float, Field(gt=0, lt=1)]


class Calibration(_Base):
    """Data that the surgery fits on; ``data`` and ``transform`` are those of a training, ``compensate`` is
    that of ``ksurgeon.convert``."""

    data: str
    transform: str | None = None
    examples: Annotated[int, Field(ge=1)] = 512
    compensate: bool = True


class Search(_Base):
    """A plan that is searched for on this machine, on the data of the calibration; see ``ksurgeon.plan``."""

    budget: str
    targets: tuple[Target, ...] = ()
    ignore: tuple[Target, ...] = ()
    structures: tuple[str, ...] = FAMILIES
    harm: HarmName = "auto"

    @field_validator("budget")
    @classmethod
    def _is_one(cls, budget: str) -> str:
        try:
            Budget.parse(budget)
        except PlanError as error:
            raise ValueError(str(error)) from error
        return budget

    @field_validator("structures")
    @classmethod
    def _are_families(cls, structures: tuple[str, ...]) -> tuple[str, ...]:
        if not structures or set(structures) - set(FAMILIES):
            raise ValueError(f"structures are of {', '.join(FAMILIES)}")
        return structures


class Variant(_Base):
    """One student: by a rule (a name, a file, or its parts), by a plan (its file, or one that is searched
    for), by pruning, or untouched."""

    name: Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]
    rule: str | None = None
    plan: str | None = None
    search: Search | None = None
    replace: tuple[Replacement, ...] = ()
    prune: Prune | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(map(bool, (self.rule, self.plan, self.search, self.replace, self.prune))) > 1:
            raise ValueError("give one of rule, plan, search, replace and prune")
        return self


class TrainStage(BaseModel):
    """One training; every further key is a setting of ``ksurgeon.train.settings.Settings``.

    ``transform`` is a function that turns one example's value into what the model takes, in place of the
    preprocessing that belongs to the model.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Literal["distill", "finetune"] = "distill"
    data: str
    transform: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as they are written."""
        return dict(self.model_extra or {})


class Recipe(_Base):
    """An experiment: a model, students made from it, how they are trained, and what is measured.

    Attributes:
        prepare: function that is given a folder, puts data and models there, and returns their places by
            name; a place stands in braces wherever it is used: ``data = "{sentences}"``.
        evaluate: function that is given a model and these places, and returns metrics by name.
        calibrate: what the surgery fits on; the weights alone, if left out.
        folder: of the recipe file, which functions in ``FILE.py:function`` are relative to.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]
    summary: str = ""
    prepare: str | None = None
    evaluate: str | None = None
    seed: int = 0
    model: Model
    calibrate: Calibration | None = None
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]
    train: tuple[TrainStage, ...] = ()
    folder: Path = Path()

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        names = [variant.name for variant in self.variants]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"there are two variants {name}; give each a name of its own")
            if re.fullmatch(r"results\.(json|part)|.*\.(training|plan\.toml|search\.json)", name):
                raise ValueError(f"a run writes its own {name}; give the variant another name")
        return self

    @model_validator(mode="after")
    def _searches_have_data(self) -> Self:
        searched = [variant.name for variant in self.variants if variant.search is not None]
        if searched and self.calibrate is None:
            raise ValueError(f"variant {searched[0]} searches for a plan, which needs [calibrate] data")
        return self


def load_recipe(recipe: str | Path) -> Recipe:
    """Read a recipe file, or the built-in recipe of that name.

    Raises:
        RecipeError: there is none, or it is malformed; the message names the key.
    """
    file = Path(recipe)
    if not file.is_file():
        builtin = data_folder("recipes") / f"{recipe}.toml"
        if not builtin.is_file():
            names = sorted(path.stem for path in data_folder("recipes").glob("*.toml"))
            raise RecipeError(f"there is no recipe {recipe}; give a .toml file, or one of {', '.join(names)}")
        file = builtin
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{file}: {error}") from error
    try:
        return Recipe.model_validate({**data, "folder": file.parent})
    except ValidationError as error:
        lines = []
        for item in error.errors(include_url=False):
            where = ".".join(str(part + 1 if isinstance(part, int) else part) for part in item["loc"])
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{file}: {where or 'the top'}: {message[:1].lower()}{message[1:]}")
        raise RecipeError("\n".join(lines)) from error
