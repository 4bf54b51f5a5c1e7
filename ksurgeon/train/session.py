"""One training from data to result: its stages, and what is left of it when it fails."""

import copy
import time
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ksurgeon.errors import TrainingError
from ksurgeon.find.inputs import evaluating
from ksurgeon.surgery.record import record_of
from ksurgeon.train.checkpoint import Checkpoints
from ksurgeon.train.data import Data, open_data
from ksurgeon.train.layerwise import SiteResult, train_layers
from ksurgeon.train.log import Listener
from ksurgeon.train.loop import Loop
from ksurgeon.train.matching import match_teacher
from ksurgeon.train.norms import batch_norms, carry_batch_norms, estimate_batch_norms, norms_match
from ksurgeon.train.objective import Objective
from ksurgeon.train.outputs import Reader
from ksurgeon.train.parameters import balance_factors, freeze
from ksurgeon.train.passes import Passes
from ksurgeon.train.permutations import Hardened, harden, relax, relaxed
from ksurgeon.train.preprocess import Batch
from ksurgeon.train.processes import Stop, make_accelerator, signals
from ksurgeon.train.settings import Settings
from ksurgeon.train.targets import TargetSource, target_source
from ksurgeon.train.teacher import FoundTeacher
from ksurgeon.train.trained import Trained, note_training

__all__ = ["CHECKPOINTS", "Keep", "place_of", "train"]

CHECKPOINTS = "checkpoints"
"""Name of their folder beside the log."""

Keep = Callable[[Trained], object]
"""Is given the result while the checkpoints are still there."""

_BATCHES = 32  # that statistics of inputs are estimated on
_PAIRED = 8  # on which they are compared with those of the teacher, which takes fewer


def place_of(folder: str | Path | None, resume: bool) -> Path | None:
    """The folder of log and checkpoints, if there is to be one.

    Raises:
        TrainingError: nothing says where the checkpoints are that a training is to go on from.
    """
    if resume and folder is None:
        raise TrainingError("resume needs the folder that the checkpoints are in")
    return Path(folder) if folder is not None else None


def train(
    model: nn.Module,
    teacher: FoundTeacher | None,
    data: Any,
    settings: Settings,
    *,
    listener: Listener,
    folder: Path | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    device: str | None = None,
    preprocessor: Any = None,
    sites: Collection[str] | None = None,
    keep: Keep = lambda _: None,
    stop: Stop | None = None,
) -> Trained:
    """Train a model in place, with or without a teacher; arguments are those of ``distill``, and:

    Args:
        folder: of what trackers write.
        checkpoints: folder of the checkpoints; there are none without it.
        stop: is told of signals.
    """
    begin = time.perf_counter()
    opened = open_data(data, model, settings, preprocessor=preprocessor)
    if settings.batch_norm == "auto":
        same = teacher is not None and norms_match(model, teacher.model)
        settings = settings.model_copy(update={"batch_norm": "frozen" if same else "train"})
    if not opened.train:
        raise TrainingError("no example is left to train on: all are held out; set held_out = 0")
    accelerator = make_accelerator(settings, device, str(folder) if folder else None)
    told = listener if accelerator.is_main_process else Listener()
    kept = Checkpoints(checkpoints) if checkpoints is not None else None
    going_on = resume and kept is not None and kept.exist()
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
                teacher.model.to(where)
                asked = match_teacher(objective, teacher.model, _some(opened, where, 1)[0], settings)
                if not going_on:
                    batches = _some(opened, where)
                    layers = train_layers(model, teacher.model, batches, settings, told, sites)
                targets = target_source(asked, objective, opened, settings, accelerator, told)
            balance_factors(model)
            if batch_norms(model):
                anew = sites is not None or not _is_trained(model)  # a training's own go on otherwise
                if settings.batch_norm == "train" or teacher is None:
                    estimate_batch_norms(model, _some(opened, where))
                elif anew:
                    passes = Passes(objective, targets, accelerator, opened.batch)
                    _carry(model, teacher, passes, _some(opened, where, 2 * _PAIRED), told)
            if settings.trackers:
                accelerator.init_trackers("ksurgeon", config=_flat(settings))
            loop = Loop(
                objective,
                targets,
                opened,
                settings,
                accelerator,
                told,
                checkpoints=kept,
                resume=resume,
                used=time.perf_counter() - begin,
                stop=stop,
            )
            told.stage("end to end", loop.state.clock.total or 0)
            loop.run(started=before.clear)
        if batch_norms(model) and settings.batch_norm == "train":
            estimate_batch_norms(model, _some(opened, where))
        balance_factors(model)
        hardened = _harden_all(model)
        for tracker in accelerator.trackers:
            tracker.finish()
    except BaseException:
        if before:  # not one step was made: the model is given back as it was
            _unrelax(model)
            model.load_state_dict(before)
        raise
    seconds = loop.state.clock.elapsed
    trained = Trained(
        model=model.eval(),
        history=loop.state.history,
        steps=loop.state.step,
        seconds=seconds,
        rate=loop.state.step * opened.batch / max(seconds, 1e-9),
        layers=layers,
        hardened=hardened,
        broken=opened.broken,
    )
    note_training(trained, teacher.name if teacher is not None else "", opened)
    with signals(loop.stop):
        keep(trained)
    if kept is not None and accelerator.is_main_process:
        kept.remove()
    return trained


def _some(data: Data, device: torch.device, count: int = _BATCHES) -> list[Batch]:
    """The first training batches, on the device."""
    from accelerate.utils import send_to_device

    numbers = torch.tensor(data.train)[
        torch.randperm(len(data.train), generator=torch.Generator().manual_seed(data.settings.seed))
    ]
    chosen = numbers[: count * data.batch].tolist()
    return [send_to_device(batch, device) for batch in islice(data.batches(chosen), count)]


def _is_trained(model: nn.Module) -> bool:
    record = record_of(model)
    return record is not None and bool(record.trainings)


def _carry(
    model: nn.Module, teacher: FoundTeacher, passes: Passes, batches: list[Batch], told: Listener
) -> None:
    """Carry the teacher's statistics over, unless the student is nearer to it without, on other batches."""
    judged, norms = batches[_PAIRED:] or batches, batch_norms(model)
    with evaluating(passes.objective):
        carry_batch_norms(model, teacher.model, batches[:_PAIRED], shared=False)
        before = passes.scales(judged, balance=True)
        old = {path: copy.deepcopy(norm.state_dict()) for path, norm in norms.items()}
        carry_batch_norms(model, teacher.model, batches[:_PAIRED])
        after = passes.scales(judged, balance=True)
    start = passes.weigh(before, before)
    if isfinite(start) and not passes.weigh(after, before) <= start:
        for path, state in old.items():
            norms[path].load_state_dict(state)
        told.note("statistics of batch normalisation stay: changed as the layers were, they do worse")


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
