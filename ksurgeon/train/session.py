"""One training from data to result: its stages, and what is left of it when it fails."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ksurgeon.calibrate.preprocess import Batch
from ksurgeon.errors import TrainingError
from ksurgeon.train.checkpoint import Checkpoints, seed_all
from ksurgeon.train.clock import Clock
from ksurgeon.train.data import Data, open_data
from ksurgeon.train.evaluate import Evaluator
from ksurgeon.train.keeper import Keeper
from ksurgeon.train.layerwise import SiteResult
from ksurgeon.train.log import Listener, Phase
from ksurgeon.train.loop import Loop
from ksurgeon.train.losses import Loss
from ksurgeon.train.matching import match_teacher
from ksurgeon.train.norms import norms_match
from ksurgeon.train.objective import Objective
from ksurgeon.train.outputs import Reader
from ksurgeon.train.parameters import balance_factors, freeze
from ksurgeon.train.passes import Passes
from ksurgeon.train.permutations import Hardened, harden, relax, relaxed
from ksurgeon.train.phases import Phases
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

Start = Callable[[nn.Module], object]


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
    start: Start | None = None,
    loss: Loss | None = None,
) -> Trained:
    """Train a model in place, with or without a teacher; arguments are those of ``distill``, and:

    Args:
        folder: of what trackers write.
        checkpoints: folder of the checkpoints; there are none without it.
        stop: is told of signals.
        start: gives the model the values of a student as it came, which are kept if it is better with them.
        loss: as ``finetune`` takes it.
    """
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
    clock = Clock(settings, opened.batches_per_epoch)
    keeper: Keeper | None = None
    try:
        with freeze(model, settings.freeze):
            seed_all(settings.seed)
            objective = Objective(model, Reader(settings.task, model), settings, loss=loss)
            objective.to(where)
            targets: TargetSource | None = None
            if teacher is not None:
                teacher.model.to(where)
                asked = match_teacher(objective, teacher.model, _first(opened, where), settings)
                targets = target_source(asked, objective, opened, settings, accelerator, told)
            passes = Passes(objective, targets, accelerator, opened.batch)
            evaluator = Evaluator(passes, opened, clock)
            keeper = Keeper(model, evaluator, told)
            source = teacher.model if teacher is not None else None
            phases = Phases(model, source, keeper, evaluator, settings, told, sites)
            layers = [] if going_on else _prepare(phases, start, told)
            loop = _loop(phases, passes, checkpoints=kept, resume=resume, stop=stop)
            if settings.trackers:
                accelerator.init_trackers("ksurgeon", config=_flat(settings))
            told.stage("end to end", clock.total or 0)
            loop.run()
        _tell_of_all(loop.state.keeper, told)
        hardened: dict[str, Hardened] = {}
        if loop.state.fallback is not None and not keeper.attempt(
            "hard permutations", lambda: hardened.update(_harden_all(model))
        ):
            hardened = {}
        for tracker in accelerator.trackers:
            tracker.finish()
    except BaseException:
        _unrelax(model)
        if keeper is not None:
            keeper.restore()
        raise
    seconds = clock.elapsed
    trained = Trained(
        model=model.eval(),
        history=keeper.history,
        steps=loop.state.step,
        seconds=seconds,
        rate=loop.state.step * opened.batch / max(seconds, 1e-9),
        best=keeper.best,
        evaluating=evaluator.spent,
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


def _prepare(phases: Phases, start: Start | None, told: Listener) -> list[SiteResult]:
    """Evaluate the model as it came, and all that comes before the training of the whole."""
    evaluator, keeper, data = phases.evaluator, phases.keeper, phases.evaluator.data
    evaluator.sample()
    evaluator.set_scales()
    keeper.consider(evaluator(0))
    seen, there = len(evaluator.numbers), len(data.held_out)
    purpose = "decide what is kept" if phases.settings.final == "best" else "are evaluated on the way"
    if not there:
        told.note(f"no examples are held out: {seen} of those that are trained on {purpose}")
    elif seen < there:
        told.note(f"{seen} of {there} held-out examples {purpose}, for the time that takes")
    if start is not None:
        keeper.attempt("the student as it came", lambda: start(phases.model))
    layers = phases.train_layers()
    phases.take_statistics()
    if not evaluator.has_scales():  # of a model whose outputs were not finite
        evaluator.set_scales()
        keeper.best = None
        keeper.consider(evaluator(0))
    return layers


def _loop(phases: Phases, passes: Passes, **options: Any) -> Loop:
    """The training of the whole, of factors of even norms; soft permutations are better than softer ones."""
    model, settings, keeper = phases.model, phases.settings, phases.keeper
    fallback = None
    if settings.permutations == "soft":
        _relax_all(model, settings)
        fallback, keeper = keeper, Keeper(model, keeper.evaluate, keeper.listener, keeper.history)
    if settings.balance_factors:
        balance_factors(model)

    def finish() -> None:
        if settings.batch_norm == "train":
            phases.estimate()
        if settings.balance_factors:
            balance_factors(model)

    return Loop(
        passes, phases.evaluator, keeper, finish, settings, phases.listener, fallback=fallback, **options
    )


def _tell_of_all(keeper: Keeper, told: Listener) -> None:
    """Of the training of the whole, as of a phase."""
    before = next(e for e in reversed(keeper.history) if e.is_best and not e.step)
    best, last = keeper.best, keeper.history[-1]
    assert best is not None
    if last.step:
        kept = best.step > 0
        told.judged(Phase(name="end to end", before=before, after=best if kept else last, kept=kept))


def _first(data: Data, device: torch.device) -> Batch:
    """A training batch, on the device."""
    from accelerate.utils import send_to_device

    return send_to_device(next(data.training_batches(0))[0], device)


def _relax_all(model: nn.Module, settings: Settings) -> None:
    from ksurgeon.kmatrix.shuffle import KChannelShuffle

    for module in model.modules():
        if isinstance(module, KChannelShuffle):
            relax(module.matrix, temperature=settings.temperatures[0], spread=settings.spread)


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
