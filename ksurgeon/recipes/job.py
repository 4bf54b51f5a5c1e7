"""One variant of a recipe with one seed: surgery, training and evaluation."""

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from ksurgeon.errors import RecipeError, TrainingError
from ksurgeon.models.functions import find_function
from ksurgeon.models.opening import LoadedModel
from ksurgeon.models.weights import load_weights
from ksurgeon.recipes.after import BEGAN, MODEL, is_followed, model_file, sha256_of
from ksurgeon.recipes.operate import operate
from ksurgeon.recipes.prune import count_nonzero
from ksurgeon.recipes.schema import Recipe, TrainStage, Variant
from ksurgeon.recipes.scratch import opened, settings_of, stage_data
from ksurgeon.surgery.folders import written_whole
from ksurgeon.surgery.record import record_of
from ksurgeon.surgery.storage import save
from ksurgeon.surgery.tensors import tensors_of
from ksurgeon.train.distill import Trained, distill, finetune
from ksurgeon.train.log import Listener
from ksurgeon.train.processes import device_of

__all__ = ["Job", "Measures", "carry_out", "evaluate", "seed_of_trial"]

Results = dict[str, Any]
Measures = tuple[dict[str, float], dict[str, str]]
"""Metrics by name, and texts that say how they were computed."""
_APART = 100_000  # between the seeds of two trials


@dataclass(frozen=True)
class Job:
    """What one process has to do.

    Attributes:
        recipe: with the seed of the job.
        place: of the student; checkpoints and log lie beside it.
        options: settings that go over those of every training.
        trust_remote_code: whether code in a repository that a model comes from may run.
    """

    recipe: Recipe
    variant: Variant
    place: Path
    places: dict[str, str]
    resume: bool
    device: str | None
    options: dict[str, Any]
    trust_remote_code: bool = False

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self._called(self.variant)

    @property
    def needs(self) -> str | None:
        """What the job is called whose model this one begins with."""
        before = self.recipe.before(self.variant)
        return self._called(before) if before is not None else None

    @property
    def begins_with(self) -> Path | None:
        """The file of that model's weights."""
        after = self.variant.after
        return model_file(self.place.parents[1] / after / self.place.name) if after is not None else None

    @property
    def work(self) -> Path:
        """Folder of checkpoints and logs."""
        return self.place.with_name(f"{self.place.name}.training")

    def _called(self, variant: Variant) -> str:
        return f"{variant.name}, seed {self.recipe.seed}"


def carry_out(job: Job, told: Listener, source: LoadedModel | None = None) -> Results:
    """Do the job; what it came to, as JSON takes it.

    Args:
        source: the model before surgery, which stays as it is; opened if left out.
    """
    recipe, variant = job.recipe, job.variant
    if source is None:
        source = opened(recipe, variant, job.places, device_of(job.device), job.trust_remote_code)
    begun: Results = {}
    if job.begins_with is not None:
        load_weights(source.model, job.begins_with)
        begun[BEGAN] = sha256_of(job.begins_with)
    begin = time.perf_counter()
    plans = job.work if recipe.seeds is not None else job.place.parent
    student = operate(recipe, variant, source, job.places, plans, job.resume, told)
    done: Results = {
        "parameters": count_nonzero(student),
        "surgery_seconds": time.perf_counter() - begin,
        "device": str(device_of(job.device)),
        **begun,
    }
    if not recipe.is_from_scratch:
        what = f"{variant.name} after surgery"
        done["after_surgery"], _ = evaluate(recipe, student, job.places, told, what)
    done["training"] = []
    held_out: dict[str, float] = {}
    for number, stage in enumerate(recipe.stages_of(variant)):
        trials = _train(job, stage, student, source.model, job.work / str(number), told)
        trained = min(filter(None, trials), key=lambda trial: trial.best.loss if trial.best else inf)
        student = trained.model
        done["training"].append(_plain(stage, variant.settings | job.options, trained, trials))
        if trained.best is not None and recipe.is_from_scratch:
            held_out = {**trained.best.student, "loss": trained.best.loss}
    metrics, about = evaluate(recipe, student, job.places, told, f"{variant.name} after training")
    taken = {f"held_out_{name}" if name in metrics else name: value for name, value in held_out.items()}
    done["after_training"] = taken | metrics
    if about:
        done["about"] = about
    if record_of(student) is not None:
        named = source.source.name if source.source.kind == "transformers" else None
        save(student, job.place, files_from=named)
    elif is_followed(recipe, variant):
        with written_whole(job.place) as temporary:
            save_file(tensors_of(student), model_file(temporary), metadata={"format": "pt"})
        done[MODEL] = sha256_of(model_file(job.place))
    return done


def _train(
    job: Job, stage: TrainStage, student: nn.Module, teacher: nn.Module, work: Path, told: Listener
) -> list[Trained | None]:
    """The stage's trials, None for one that failed; a single one trains the student itself.

    Raises:
        TrainingError: all failed.
    """
    settings = settings_of(job.recipe, job.variant, stage, job.options)
    taught = teacher if stage.kind == "distill" else None
    data = stage_data(job.recipe, stage, student, job.places, settings, taught)
    loss = find_function(stage.loss, RecipeError, job.recipe.folder) if stage.loss else None
    several = stage.trials > 1
    trials: list[Trained | None] = []
    for number in range(stage.trials):
        place, seed = work / str(number) if several else work, seed_of_trial(settings.seed, number)
        common: dict[str, Any] = {
            "data": replace(data, seed=seed),
            "settings": settings.model_copy(update={"seed": seed}),
            "folder": place,
            "resume": job.resume and place.is_dir(),
            "listener": told,
            "device": job.device,
        }
        if several:
            told.note(f"trial {number + 1} of {stage.trials}")
        trial = deepcopy(student) if several else student
        try:
            if stage.kind == "distill":
                trials.append(distill(trial, teacher, **common))
            else:
                trials.append(finetune(trial, loss=loss, **common))
        except TrainingError as error:
            if number + 1 == stage.trials and not any(trials):
                raise
            told.note(f"trial {number + 1} failed: {error}")
            trials.append(None)
    return trials


def seed_of_trial(seed: int, number: int) -> int:
    """The seed of a stage's trial; that of the first is the job's."""
    return seed + _APART * number


def _plain(
    stage: TrainStage, options: dict[str, Any], trained: Trained, trials: Sequence[Trained | None]
) -> Results:
    several = {"trials": [trial.best.loss if trial and trial.best else None for trial in trials]}
    return {
        "kind": stage.kind,
        "settings": {**stage.settings, **options},
        **(several if len(trials) > 1 else {}),
        "steps": trained.steps,
        "seconds": sum(trial.seconds for trial in trials if trial),
        "examples_per_second": trained.rate,
        "history": [asdict(evaluation) for evaluation in trained.history],
        "layers": [asdict(layer) for layer in trained.layers],
        "broken": len(trained.broken),
    }


def evaluate(recipe: Recipe, model: nn.Module, places: dict[str, str], told: Listener, what: str) -> Measures:
    """What the recipe's own function gives; nothing where it has no such function.

    Raises:
        RecipeError: the function is not there, or it raised.
    """
    if recipe.evaluate is None:
        return {}, {}
    function = find_function(recipe.evaluate, RecipeError, recipe.folder)
    told.note(f"evaluating {what}")
    try:
        found = function(model.eval(), places)
        about = {name: value for name, value in found.items() if isinstance(value, str)}
        metrics = {name: float(value) for name, value in found.items() if name not in about}
    except Exception as error:
        raise RecipeError(f"{recipe.evaluate} raised {type(error).__name__}: {error}") from error
    if "seconds" in metrics:
        raise RecipeError(
            f"{recipe.evaluate} returns the metric seconds, which is the time of training in the results; "
            "give it another name"
        )
    told.note(f"{what}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    for name, value in about.items():
        told.note(f"{name}: {value}")
    return metrics, about
