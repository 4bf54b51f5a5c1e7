"""Distillation and fine-tuning: one call each."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ksurgeon.errors import TrainingError
from ksurgeon.surgery.record import Training, record_of
from ksurgeon.surgery.storage import load
from ksurgeon.train.blocks import pair_blocks
from ksurgeon.train.data import Data, open_data
from ksurgeon.train.layerwise import SiteResult, train_layers
from ksurgeon.train.log import Evaluation, JsonLog, Listener, Listeners
from ksurgeon.train.loop import Loop
from ksurgeon.train.norms import batch_norms, estimate_batch_norms
from ksurgeon.train.objective import Objective, Teacher
from ksurgeon.train.outputs import Reader, term_of
from ksurgeon.train.parameters import balance_factors, freeze
from ksurgeon.train.permutations import Hardened, harden, relax, relaxed
from ksurgeon.train.processes import make_accelerator
from ksurgeon.train.settings import Settings, make_settings
from ksurgeon.train.targets import TargetSource, target_source
from ksurgeon.train.teacher import FoundTeacher, find_teacher

__all__ = ["Trained", "distill", "finetune"]

_BATCHES = 32  # that statistics of inputs are estimated on


@dataclass
class Trained:
    """A model after its training.

    Attributes:
        history: evaluations on held-out examples, that before the first step first.
        layers: what the training of single layers did.
        hardened: what became of soft permutations, by path.
        broken: examples that could not be read.
        rate: examples per second of the end-to-end training, evaluations included.
    """

    model: nn.Module
    history: list[Evaluation]
    steps: int
    seconds: float
    rate: float
    layers: list[SiteResult] = field(default_factory=list)
    hardened: dict[str, Hardened] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    @property
    def best(self) -> Evaluation | None:
        """The evaluation of the weights that were kept; None without held-out examples."""
        return next((evaluation for evaluation in reversed(self.history) if evaluation.is_best), None)


def distill(
    student: nn.Module | str | Path,
    teacher: nn.Module | FoundTeacher | str | None = None,
    data: Any = None,
    *,
    settings: Settings | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    preprocessor: Any = None,
    sites: Collection[str] | None = None,
    listener: Listener | None = None,
    **options: Any,
) -> Trained:
    """Let an operated model learn from its original, on data that needs no labels.

    Stage 1 trains every replaced layer on its own, on its original's inputs; stage 2 trains the whole model
    on the teacher's outputs, the hidden states of matching blocks, and labels where there are some.

    Args:
        student: a converted model, changed in place, or its folder.
        teacher: a model, what ``find_teacher`` gave, or a name as any command takes it; left out, what the
            student was made from.
        data: as ``open_source`` takes it.
        settings, options: as ``Settings`` lists them; options go over settings.
        folder: for checkpoints and the log; nothing is written without it.
        resume: go on from the last checkpoint in ``folder``.
        device: "cpu" keeps off GPUs; left out, what accelerate chooses.
        preprocessor: in place of that which belongs to the model.
        sites: paths of the layers that stage 1 trains; all that were replaced, if left out.
        listener: is told of every step.

    Raises:
        DataError: data that is empty, damaged beyond its limit, or of no use to the model.
        TrainingError: teacher and student that do not match, settings that make no sense, or a loss that is
            not finite; the student then holds the last good weights.
        TrainingStopped: a signal ended it.
        FolderError: a checkpoint could not be written.
    """
    model = load(student) if isinstance(student, (str, Path)) else student
    chosen = make_settings(settings, **options)
    if isinstance(teacher, nn.Module):
        found = FoundTeacher(teacher, type(teacher).__name__)
    else:
        found = teacher if isinstance(teacher, FoundTeacher) else find_teacher(model, teacher)
    if found.warning and listener is not None:
        listener.note(found.warning)
    if found.model is model:
        raise TrainingError("teacher and student are the same model; give a copy from before the surgery")
    return _train(
        model, found.model, found.name, data, chosen, folder, resume, device, preprocessor, sites, listener
    )


def finetune(
    model: nn.Module | str | Path,
    data: Any,
    *,
    settings: Settings | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    preprocessor: Any = None,
    listener: Listener | None = None,
    **options: Any,
) -> Trained:
    """Train a model on labels, without a teacher; arguments, and what is raised, are those of ``distill``."""
    model = load(model) if isinstance(model, (str, Path)) else model
    chosen = make_settings(settings, **options)
    return _train(model, None, "", data, chosen, folder, resume, device, preprocessor, None, listener)


def _train(
    model: nn.Module,
    teacher: nn.Module | None,
    teacher_name: str,
    source: Any,
    settings: Settings,
    folder: str | Path | None,
    resume: bool,
    device: str | None,
    preprocessor: Any,
    sites: Collection[str] | None,
    listener: Listener | None,
) -> Trained:
    if resume and folder is None:
        raise TrainingError("resume needs the folder that the checkpoints are in")
    begin = time.perf_counter()
    place = Path(folder) if folder is not None else None
    data = open_data(source, model, settings, preprocessor=preprocessor)
    if not data.train:
        raise TrainingError("no example is left to train on: all are held out; set held_out = 0")
    accelerator = make_accelerator(settings, device, str(place) if place else None)
    log = None
    if place is not None and accelerator.is_main_process:
        log = JsonLog(place / "log.jsonl", append=resume)
    heard = [part for part in (listener, log) if part is not None and accelerator.is_main_process]
    told = Listeners(heard)
    where = accelerator.device
    model.to(where)
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    try:
        with freeze(model, settings.freeze):
            torch.manual_seed(settings.seed)
            if settings.permutations == "soft":
                _relax_all(model, settings)
            objective = Objective(model, Reader(settings.task, model), settings)
            objective.to(where)
            targets: TargetSource | None = None
            layers: list[SiteResult] = []
            if teacher is not None:
                teacher.to(where)
                asked = _match(objective, teacher, data, settings)
                has_saved = resume and place is not None and (place / "checkpoints").is_dir()
                if not has_saved:
                    layers = train_layers(model, teacher, _some(data, where), settings, told, sites)
                targets = target_source(asked, objective, data, settings, accelerator, told)
            balance_factors(model)
            if batch_norms(model):
                estimate_batch_norms(model, _some(data, where))
            if settings.trackers:
                accelerator.init_trackers("ksurgeon", config=_flat(settings))
            loop = Loop(
                objective,
                targets,
                data,
                settings,
                accelerator,
                told,
                place,
                resume,
                time.perf_counter() - begin,
            )
            told.stage("end to end", loop.clock.total or 0)
            history = loop.run(started=before.clear)
        if batch_norms(model) and settings.batch_norm == "train":
            estimate_batch_norms(model, _some(data, where))
        balance_factors(model)
        hardened = _harden_all(model)
        if loop.checkpoints is not None and accelerator.is_main_process:
            loop.checkpoints.remove()
        accelerator.end_training()
    except BaseException:
        if before:  # not one step was made: the model is given back as it was
            _unrelax(model)
            model.load_state_dict(before)
        raise
    finally:
        if log is not None:
            log.close()
    seconds = loop.clock.elapsed
    trained = Trained(
        model=model.eval(),
        history=history,
        steps=loop.step,
        seconds=seconds,
        rate=loop.step * data.batch / max(seconds, 1e-9),
        layers=layers,
        hardened=hardened,
        broken=data.broken,
    )
    _note(trained, teacher_name, data)
    return trained


def _match(objective: Objective, teacher: nn.Module, data: Data, settings: Settings) -> Teacher:
    """The teacher, once it is known that it can teach this student."""
    model = objective.student
    pairs = pair_blocks(model, teacher) if objective.wants("hidden") else []
    asked = Teacher(
        teacher, Reader(settings.task, teacher, objective.reader.pooling), [its for _, its in pairs]
    )
    objective.pairs = pairs
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    first = next(iter(_some(data, device, 1)))
    try:
        targets = asked(first)
    except Exception as error:
        raise TrainingError(
            f"teacher and student do not match: the teacher does not run on the student's inputs "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'})"
        ) from error
    objective.fit_projections(first, targets)
    asked.blocks = tuple(its for _, its in objective.pairs)
    with torch.no_grad():
        _, outputs = objective.terms_and_outputs({**first, "labels": None}, None)
    common = outputs.keys() & targets.keys()
    if not common and not objective.pairs and first.get("labels") is None:
        raise TrainingError(
            f"teacher and student do not match: the teacher gives {_shapes(targets)}, the student "
            f"{_shapes(outputs)}"
        )
    for name in sorted(name for name in common if objective.wants(term_of(name))):
        if outputs[name].shape != targets[name].shape:
            raise TrainingError(
                f"teacher and student do not match: {name} is {tuple(targets[name].shape)} of the teacher "
                f"and {tuple(outputs[name].shape)} of the student, the batch first"
            )
    return asked


def _shapes(outputs: dict[str, torch.Tensor]) -> str:
    own = {name: tensor for name, tensor in outputs.items() if not name.startswith("hidden.")}
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in own.items()) or "nothing"


def _some(data: Data, device: torch.device, count: int = _BATCHES) -> list[Any]:
    """The first training batches, on the device."""
    from accelerate.utils import send_to_device

    numbers = torch.tensor(data.train)[
        torch.randperm(len(data.train), generator=torch.Generator().manual_seed(data.settings.seed))
    ]
    chosen = numbers[: count * data.batch].tolist()
    return [send_to_device(batch, device) for batch in islice(data.batches(chosen), count)]


def _relax_all(model: nn.Module, settings: Settings) -> None:
    from ksurgeon.kmatrix.shuffle import KChannelShuffle

    for module in model.modules():
        if isinstance(module, KChannelShuffle):
            relax(module.matrix, temperature=settings.temperatures[0])


def _unrelax(model: nn.Module) -> None:
    for matrix in relaxed(model):
        for number in range(len(matrix.factors)):
            parametrize.remove_parametrizations(matrix.factors, str(number))


def _harden_all(model: nn.Module) -> dict[str, Hardened]:
    soft = {id(matrix) for matrix in relaxed(model)}
    paths: Sequence[tuple[str, Any]] = [(p, m) for p, m in model.named_modules() if id(m) in soft]
    return {path.removesuffix(".matrix"): harden(matrix) for path, matrix in paths}


def _flat(settings: Settings) -> dict[str, Any]:
    return {name: value if isinstance(value, (int, float, bool)) else str(value) for name, value in settings}


def _note(trained: Trained, teacher: str, data: Data) -> None:
    """The training goes into the model's record."""
    record = record_of(trained.model)
    if record is None:
        return
    first, best = trained.history[0] if trained.history else None, trained.best
    record.trainings.append(
        Training(
            teacher=teacher or None,
            data=data.source.name,
            examples=len(data.train),
            steps=trained.steps,
            batch=data.batch,
            seconds=round(trained.seconds, 1),
            settings=data.settings.model_dump(mode="json", exclude_defaults=True),
            before=first.student if first else {},
            after=best.student if best else {},
            teacher_metrics=best.teacher if best else {},
        )
    )
