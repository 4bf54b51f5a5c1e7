"""The parts of a recipe file."""

from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

from ksurgeon.calibrate.harm import HarmName
from ksurgeon.errors import PlanError
from ksurgeon.planner import Budget
from ksurgeon.planner.options import FAMILIES, families
from ksurgeon.rules.schema import Insertion, Replacement, Target
from ksurgeon.train.settings import Settings

__all__ = [
    "Base",
    "Calibration",
    "Crop",
    "Model",
    "NamedModel",
    "Prune",
    "Quick",
    "Search",
    "TrainStage",
    "Variant",
]


class Base(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Base):
    """The model before surgery; ``name`` and ``weights`` as every command takes them.

    ``options`` are arguments of its function or of the library's builder; a model that is trained from
    scratch has random weights unless others are named.
    """

    name: str
    weights: str = "auto"
    input_size: int | tuple[int, ...] | None = None
    options: dict[str, Any] = {}


NamedModel = Annotated[
    Model, BeforeValidator(lambda given: {"name": given} if isinstance(given, str) else given)
]


class Prune(Base):
    """Magnitude pruning in place of surgery, to compare with: ``share`` of each layer's weights stays."""

    targets: Annotated[tuple[Target, ...], Field(min_length=1)]
    share: Annotated[float, Field(gt=0, lt=1)]


class Calibration(Base):
    """Data that the surgery fits on; ``data`` and ``transform`` are those of a training, ``compensate`` is
    that of ``ksurgeon.convert``."""

    data: str
    transform: str | None = None
    examples: Annotated[int, Field(ge=1)] = 512
    compensate: bool = True


class Search(Base):
    """A plan that is searched for on this machine, on the data of the calibration; see ``ksurgeon.plan``."""

    budget: str
    targets: tuple[Target, ...] = ()
    ignore: tuple[Target, ...] = ()
    structures: tuple[str, ...] = FAMILIES  # whatever packages are installed
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
        if not structures or set(structures) - set(families()):
            raise ValueError(f"structures are of {', '.join(families())}")
        return structures


class Variant(Base):
    """One student: by a rule (a name, a file, or its parts), by a plan (its file, or one that is searched
    for), by pruning, or untouched; trained from scratch, each may have a model of its own, or ``options``
    that go over those of the recipe's model.

    ``settings`` go over those of every training that it has; ``baseline`` is the variant that it is compared
    with, in place of the recipe's. ``after`` names the variant, trained from scratch, whose trained model of
    the same seed this one is made from, and whose model is the teacher where this one is distilled.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]
    model: NamedModel | None = None
    options: dict[str, Any] = {}
    rule: str | None = None
    plan: str | None = None
    search: Search | None = None
    replace: tuple[Replacement, ...] = ()
    insert: tuple[Insertion, ...] = ()
    prune: Prune | None = None
    settings: dict[str, Any] = {}
    baseline: str | None = None
    after: str | None = None

    @property
    def parts(self) -> tuple[Replacement | Insertion, ...]:
        """Those of a rule of its own."""
        return (*self.replace, *self.insert)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(map(bool, (self.rule, self.plan, self.search, self.parts, self.prune))) > 1:
            raise ValueError("give one of rule, plan, search, prune, and replace or insert, or both")
        if self.model is not None and self.options:
            raise ValueError("give model with all its options, or options over those of the recipe's model")
        if self.after is not None and (self.model is not None or self.options):
            raise ValueError(
                f'after = "{self.after}" has the model of that variant; leave model and options out'
            )
        return self


class Crop(Base):
    """Random crops to train on, and the middle of the held-out pictures; see ``crops``."""

    size: PositiveInt
    padding: Annotated[int, Field(ge=0)] = 0
    flip: bool = True
    scale: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _padded_or_resized(self) -> Self:
        if self.padding and self.scale is not None:
            raise ValueError("give padding, or scale, with which images are resized and not padded")
        return self


class TrainStage(BaseModel):
    """One training; every further key is a setting of ``ksurgeon.train.settings.Settings``.

    Attributes:
        kind: "distill", "finetune" without a teacher, or "train" from scratch.
        data: as every command takes it, or a function, which may take the places, and of a distillation the
            teacher, too.
        transform: function that turns one example's value into what the model takes, in place of the
            preprocessing that belongs to the model.
        test: data that are held out and all evaluated; a share of ``data``, if left out.
        test_transform: of held-out examples; that of all, if left out.
        crop: in place of both transforms.
        loss: function in place of the loss on labels, which the data then need not have; see
            ``ksurgeon.finetune``.
        only: names of the variants that are trained so; all, if left out.
        trials: so often the stage is done, each time from the same model with other random numbers; the trial
            of the least loss on held-out examples is what goes on.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Literal["distill", "finetune", "train"] = "distill"
    data: str
    transform: str | None = None
    test: str | None = None
    test_transform: str | None = None
    crop: Crop | None = None
    loss: str | None = None
    only: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    trials: Annotated[int, Field(ge=1, strict=True)] = 1

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as they are written."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _keys_are_spelt(self) -> Self:
        own, known = set(type(self).model_fields), set(Settings.model_fields)
        for name in set(self.settings) - known:
            near = get_close_matches(name, sorted(own | known), n=1)
            if near and near[0] in own:
                raise ValueError(f'{name} is no key of a training; did you mean "{near[0]}"?')
        return self

    @model_validator(mode="after")
    def _one_transform(self) -> Self:
        if self.crop is not None and (self.transform or self.test_transform):
            raise ValueError("give crop, or transform and test_transform")
        return self

    @model_validator(mode="after")
    def _loss_is_own(self) -> Self:
        if self.loss is not None and self.kind == "distill":
            raise ValueError(
                f'loss = "{self.loss}" takes the place of labels, and kind = "distill" learns from a '
                'teacher; give kind = "train" or "finetune"'
            )
        return self


class Quick(Base):
    """What is different in a short run that shows that all works, and whose figures mean little.

    Attributes:
        only: names of the variants that are done; all, if left out.
        settings: go over those of every training.
        evaluate: function in place of the recipe's own, which may take long.
        examples: of the calibration, in place of its own.
        trials: at most so many of a stage.
    """

    only: tuple[str, ...] = ()
    seeds: PositiveInt | None = None
    settings: dict[str, Any] = {}
    evaluate: str | None = None
    examples: PositiveInt | None = None
    trials: Annotated[int, Field(ge=1, strict=True)] = 1
