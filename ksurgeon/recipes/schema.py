"""What a recipe file may say."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, ValidationError, model_validator

from ksurgeon.errors import RecipeError
from ksurgeon.files import parse_toml, read_regular
from ksurgeon.recipes.parts import (
    Base,
    Calibration,
    Crop,
    Model,
    NamedModel,
    Prune,
    Quick,
    Search,
    TrainStage,
    Variant,
)
from ksurgeon.rules.load import data_folder

__all__ = [
    "Calibration",
    "Crop",
    "Model",
    "Prune",
    "Quick",
    "Recipe",
    "Search",
    "TrainStage",
    "Variant",
    "load_recipe",
]


class Recipe(Base):
    """An experiment: a model, students made from it, how they are trained, and what is measured.

    Attributes:
        prepare: function that is given a folder, puts data and models there, and returns their places by
            name; a place stands in braces wherever it is used: ``data = "{sentences}"``.
        evaluate: function that is given a model and these places, and returns metrics by name, and texts that
            say how they were computed.
        seeds: so many seeds, from ``seed`` on, of every variant; results then have their means and spread.
        baseline: variant that the others are compared with on the same seeds; the first, if left out.
        latency: whether the models' latency on one CPU thread is measured before they are trained.
        calibrate: what the surgery fits on, or takes a geometry from; the weights alone, if left out.
        quick: what a quick run changes; there is none, if left out.
        folder: of the recipe file, which functions in ``FILE.py:function`` are relative to.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]
    summary: str = ""
    prepare: str | None = None
    evaluate: str | None = None
    seed: int = 0
    seeds: PositiveInt | None = None
    baseline: str | None = None
    latency: bool = False
    model: NamedModel | None = None
    calibrate: Calibration | None = None
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]
    train: tuple[TrainStage, ...] = ()
    quick: Quick | None = None
    folder: Path = Path()

    @property
    def is_from_scratch(self) -> bool:
        """Whether models are trained that nothing was learned by before."""
        return bool(self.train) and self.train[0].kind == "train"

    @property
    def all_seeds(self) -> range:
        """The seeds of every variant."""
        return range(self.seed, self.seed + (self.seeds or 1))

    def model_of(self, variant: Variant) -> Model:
        """The variant's own model, or that of all with the variant's options."""
        before = self.before(variant)
        if before is not None:
            return self.model_of(before)
        model = variant.model or self.model
        assert model is not None
        return model.model_copy(update={"options": model.options | variant.options})

    def before(self, variant: Variant) -> Variant | None:
        """The variant whose trained model this one is made from; None for one that is made anew."""
        return next((each for each in self.variants if each.name == variant.after), None)

    def stages_of(self, variant: Variant) -> list[TrainStage]:
        """The variant's trainings in order."""
        return [stage for stage in self.train if stage.only is None or variant.name in stage.only]

    def quickened(self) -> Self:
        """The recipe of a quick run, but for the settings that its trainings have.

        Raises:
            RecipeError: it tells of none.
        """
        quick = self.quick
        if quick is None:
            raise RecipeError(
                f"the recipe {self.name} has no quick run; give it a table [quick] (recipes/README.md tells "
                "what stands there), or run it whole, without --quick"
            )
        changed: dict[str, Any] = {
            "seeds": quick.seeds or self.seeds,
            "evaluate": quick.evaluate or self.evaluate,
            "train": tuple(
                stage.model_copy(update={"trials": min(stage.trials, quick.trials)}) for stage in self.train
            ),
        }
        if self.calibrate is not None and quick.examples is not None:
            changed["calibrate"] = self.calibrate.model_copy(update={"examples": quick.examples})
        return self.model_copy(update=changed)

    @model_validator(mode="after")
    def _kinds_go_together(self) -> Self:
        kinds = [stage.kind for stage in self.train]
        taught = {variant.name for variant in self.variants if variant.after is not None}
        distilled = [stage for stage in self.train if stage.kind == "distill"]
        alone = any(stage.only is None or not taught >= set(stage.only) for stage in distilled)
        if "train" in kinds and (kinds[0] != "train" or alone):
            raise ValueError(
                'kind = "train" comes first, and what follows is "train" or "finetune": there is no teacher, '
                "but for variants that come after another, which the stage names in only"
            )
        own = [variant.name for variant in self.variants if variant.model is not None or variant.options]
        if own and not self.is_from_scratch:
            raise ValueError(f'variant {own[0]} has a model of its own, which needs kind = "train"')
        if self.model is None and any(variant.model is None for variant in self.variants):
            raise ValueError("give [model], or a model to every variant that is trained from scratch")
        if self.latency and not self.is_from_scratch:
            raise ValueError('latency = true needs kind = "train"; ksurgeon convert measures a student\'s')
        return self

    @model_validator(mode="after")
    def _baseline_is_there(self) -> Self:
        names = [variant.name for variant in self.variants]
        for baseline in (self.baseline, *(variant.baseline for variant in self.variants)):
            if baseline is not None and baseline not in names:
                raise ValueError(f"baseline is one of {', '.join(names)}, got {baseline}")
        return self

    @model_validator(mode="after")
    def _models_are_trained_before(self) -> Self:
        made_anew = list[str]()
        for variant in self.variants:
            if variant.after is None:
                if not (variant.rule or variant.plan or variant.search or variant.parts or variant.prune):
                    made_anew.append(variant.name)
            elif not self.is_from_scratch:
                raise ValueError(
                    f'variant {variant.name} has after = "{variant.after}", which needs kind = "train"'
                )
            elif variant.after not in made_anew:
                raise ValueError(
                    f'variant {variant.name} has after = "{variant.after}"; name an earlier '
                    f"variant without conversion: {', '.join(made_anew) or 'there is none'}"
                )
        return self

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        names = [variant.name for variant in self.variants]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"there are two variants {name}; give each a name of its own")
            if re.fullmatch(r"results\.(json|part|svg)|.*\.(training|plan\.toml|search\.json)", name):
                raise ValueError(f"a run writes its own {name}; give the variant another name")
        return self

    @model_validator(mode="after")
    def _stages_are_of_variants(self) -> Self:
        names = [variant.name for variant in self.variants]
        lists = [(f"train.{number}.only", stage.only or ()) for number, stage in enumerate(self.train, 1)]
        lists += [("quick.only", self.quick.only)] if self.quick is not None else []
        for place, listed in lists:
            for name in listed:
                if name not in names:
                    raise ValueError(f'{place} names "{name}"; the variants are {", ".join(names)}')
        idle = [variant.name for variant in self.variants if not self.stages_of(variant)]
        if self.is_from_scratch and idle:
            raise ValueError(
                f"variant {idle[0]} is trained by no stage; name it in the only of one, or leave an only out"
            )
        return self

    @model_validator(mode="after")
    def _needed_data_are_given(self) -> Self:
        searched = [variant.name for variant in self.variants if variant.search is not None]
        if searched and self.calibrate is None:
            raise ValueError(f"variant {searched[0]} searches for a plan, which needs [calibrate] data")
        arranged = [v.name for v in self.variants if any(part.start == "geometry" for part in v.insert)]
        if arranged and self.calibrate is None:
            raise ValueError(f'variant {arranged[0]} has start = "geometry", which needs [calibrate] data')
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
        data = parse_toml(read_regular(file))
    except (OSError, ValueError) as error:
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
