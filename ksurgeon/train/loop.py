"""The end-to-end training: steps, evaluations, checkpoints, and what happens when it goes wrong."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from itertools import chain
from math import isfinite
from typing import TYPE_CHECKING

import torch

from ksurgeon.errors import DataError, FolderError, TrainingError, TrainingStopped
from ksurgeon.train.checkpoint import Checkpoints
from ksurgeon.train.clock import Clock, rate_at
from ksurgeon.train.data import Data
from ksurgeon.train.evaluate import evaluate
from ksurgeon.train.faults import describe_fault
from ksurgeon.train.log import Evaluation, Listener, Step
from ksurgeon.train.modes import training_mode
from ksurgeon.train.objective import Objective
from ksurgeon.train.parameters import Averaged, balance_factors, make_optimiser
from ksurgeon.train.passes import Passes
from ksurgeon.train.permutations import relaxed, set_temperature
from ksurgeon.train.preprocess import Batch
from ksurgeon.train.processes import Stop, signals
from ksurgeon.train.saving import pack, unpack
from ksurgeon.train.settings import Settings
from ksurgeon.train.state import State
from ksurgeon.train.targets import TargetSource

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Loop"]


class Loop:
    """Trains an objective, and leaves the best weights it met in the student.

    Args:
        targets: gives the teacher's outputs for a batch; None without a teacher.
        checkpoints: where they go; None keeps none.
        resume: go on from the last checkpoint there, if there is one; otherwise those there are removed when
            the training begins.
        used: seconds that were spent before, of those that the settings allow.
        stop: is told of signals.
    """

    def __init__(
        self,
        objective: Objective,
        targets: TargetSource | None,
        data: Data,
        settings: Settings,
        accelerator: "Accelerator",
        listener: Listener,
        checkpoints: Checkpoints | None = None,
        resume: bool = False,
        used: float = 0.0,
        stop: Stop | None = None,
    ) -> None:
        self.objective, self.targets, self.data, self.settings = objective, targets, data, settings
        self.accelerator, self.listener = accelerator, listener
        self.checkpoints, self.stop = checkpoints, Stop() if stop is None else stop
        self.passes = Passes(objective, targets, accelerator, data.batch)
        optimiser = make_optimiser(objective, settings)
        model, wrapped = accelerator.prepare(objective, optimiser)
        trained = [p for group in optimiser.param_groups for p in group["params"]]
        self.state = State(
            objective=objective,
            model=model,
            optimiser=wrapped,
            average=Averaged(trained, settings.ema),
            clock=Clock(settings, data.batches_per_epoch, used),
            data=data,
            settings=settings,
        )
        self._saved = self._mark = used
        self._anew = not resume
        if checkpoints is not None and resume:
            self._resume(checkpoints)

    def run(self, started: Callable[[], None] = lambda: None) -> list[Evaluation]:
        """Train to the end; the student then holds the best weights.

        Args:
            started: called when all that can be checked before the first step was.

        Raises:
            TrainingError: the loss is not finite; the student holds the last good weights.
            TrainingStopped: a signal came; a checkpoint was written where there is a folder.
            DataError: too many examples cannot be read, or labels are out of range.
            FolderError: a checkpoint could not be written; earlier ones are as they were.
        """
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        with (
            signals(self.stop),
            training_mode(self.objective.student, self.settings, self.targets is not None),
        ):
            try:
                self._run(self.data.training_batches(self.state.step, rank, processes), started)
            except (TrainingError, DataError):
                self._take_best()
                raise
        self._take_best()
        return self.state.history

    def _run(self, batches: Iterator[list[Batch]], started: Callable[[], None]) -> None:
        state = self.state
        if not state.scales:
            first = next(batches)
            state.scales = self.passes.scales(first, self.settings.balance)
            batches = chain([first], batches)
        if not state.history:
            self._evaluate()
        if self._anew and self.checkpoints is not None and self.accelerator.is_main_process:
            self.checkpoints.remove()
        started()
        while self._goes_on():
            self._train(next(batches))
            if self._due():
                self._evaluate()
            self._keep()
        if not state.step:
            self.listener.note("no step of the whole was taken: the time was over before; give more minutes")
        if not state.history or state.history[-1].step != state.step:
            self._evaluate()

    def _goes_on(self) -> bool:
        state = self.state
        if self.settings.patience and state.stale >= self.settings.patience:
            self.listener.note(f"stopped at step {state.step}: no better for {state.stale} evaluations")
            return False
        return self._progress() < 1

    def _progress(self) -> float:
        elapsed = self.state.clock.elapsed
        if self.state.clock.seconds is not None and self.accelerator.num_processes > 1:
            elapsed = self.accelerator.reduce(torch.tensor(elapsed, device=self.accelerator.device)).item()
            elapsed /= self.accelerator.num_processes
        return self.state.clock.progress(self.state.step, elapsed)

    def _train(self, micro_batches: list[Batch]) -> None:
        state = self.state
        progress = self._progress()
        factor = rate_at(progress, self.settings.warmup)
        for group in state.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        if relaxed(self.objective.student):
            first, last = self.settings.temperatures
            set_temperature(self.objective, first * (last / first) ** progress)
        values = self.passes.backward(state.model, micro_batches, state.scales)
        norm = self.accelerator.clip_grad_norm_(state.parameters, self.settings.clip or float("inf"))
        loss = self._weigh(values)
        gradient = float(norm) if norm is not None else 0.0
        scaled = self.accelerator.mixed_precision == "fp16"  # whose scaler leaves out such a step itself
        if not isfinite(loss) or not (isfinite(gradient) or scaled):
            raise TrainingError(
                self._explain(f"the loss is not finite at step {state.step + 1}", micro_batches)
            )
        state.optimiser.step()
        state.optimiser.zero_grad()
        state.step += 1
        state.average.update(state.step)
        every = self.settings.balance_factors
        if every and state.step % every == 0 and not state.average.decay:
            balance_factors(self.objective, state.plain_optimiser)
        seconds = state.clock.elapsed
        report = Step(
            step=state.step,
            total=state.clock.total,
            progress=state.clock.progress(state.step, seconds),
            seconds=seconds,
            loss=loss,
            terms=values,
            lr=self.settings.lr * factor,
            gradient=gradient,
            rate=self.data.batch / max(seconds - self._mark, 1e-9),
        )
        self._mark = seconds
        self.listener.step(report)
        if self.accelerator.trackers:
            self.accelerator.log({"loss": loss, "lr": self.settings.lr * factor, **values}, step=state.step)

    def _weigh(self, terms: dict[str, float]) -> float:
        return self.passes.weigh(terms, self.state.scales)

    def _explain(self, what: str, batches: Iterable[Batch]) -> str:
        fault = describe_fault(self.objective.student, map(self.passes.here, batches))
        kept = "the best weights so far" if self.state.best else "the weights of the start"
        place = f"; the last checkpoint is in {self.checkpoints.folder}" if self.checkpoints else ""
        return (
            f"{what}: {fault}. The model holds {kept}{place}; try a smaller learning rate than "
            f"{self.settings.lr:g}, or precision no"
        )

    def _due(self) -> bool:
        return self._progress() >= self.state.evaluations / self.settings.evaluate

    def _evaluate(self) -> None:
        state = self.state
        state.evaluations += 1
        while state.evaluations / self.settings.evaluate <= self._progress() < 1:
            state.evaluations += 1
        with state.average.in_place() if state.step else nullcontext():
            found = evaluate(self.objective, self.targets, self.data, self.accelerator, self._weigh)
            if found is None:
                state.best = (float("inf"), state.values())
                return
            loss, student, teacher = found
            if not isfinite(loss):
                held_out = self.data.batches(self.data.held_out)
                what = f"the loss of the held-out examples is not finite after step {state.step}"
                raise TrainingError(self._explain(what, held_out))
            is_best = state.best is None or loss < state.best[0]
            if is_best:
                state.best = (loss, state.values())
        state.stale = 0 if is_best else state.stale + 1
        evaluation = Evaluation(
            step=state.step,
            seconds=state.clock.elapsed,
            loss=loss,
            student=student,
            teacher=teacher,
            is_best=is_best,
        )
        state.history.append(evaluation)
        self._mark = state.clock.elapsed
        self.listener.evaluated(evaluation)
        if self.accelerator.trackers:
            self.accelerator.log({f"held_out/{k}": v for k, v in student.items()}, step=state.step)

    def _take_best(self) -> None:
        if self.state.best is not None:
            self.state.assign(self.state.best[1])

    def _keep(self) -> None:
        """A checkpoint, if one is due or a signal came."""
        late = self.state.clock.elapsed - self._saved >= self.settings.checkpoint * 60
        wishes = torch.tensor([float(late), float(bool(self.stop))], device=self.accelerator.device)
        due, stopped = (wish > 0 for wish in self.accelerator.reduce(wishes).tolist())
        if due or stopped:
            self.save()
        if stopped:
            where = "no folder was given for a checkpoint"
            if self.checkpoints is not None:
                where = f"the checkpoint is in {self.checkpoints.folder}; go on with --resume"
            raise TrainingStopped(f"stopped by a signal after step {self.state.step}; {where}")

    def save(self) -> None:
        """Write a checkpoint, where there is a folder; all processes take part.

        Raises:
            FolderError: the disk is full, or the folder cannot be written.
        """
        if self.checkpoints is None:
            return
        tensors, plain = pack(self.state)
        if self.accelerator.is_main_process:
            try:
                self.checkpoints.save(self.state.step, tensors, plain)
            except FolderError as error:
                if not self.checkpoints.exist():
                    raise
                raise FolderError(
                    f"{error}, and the checkpoint before is whole: go on with --resume"
                ) from error
        self.accelerator.wait_for_everyone()
        self._saved = self.state.clock.elapsed

    def _resume(self, checkpoints: Checkpoints) -> None:
        saved = checkpoints.last()
        if saved is None:
            self.listener.note(f"there is no checkpoint in {checkpoints.folder}; starting anew")
            return
        unpack(self.state, saved)
        self._saved = self.state.clock.before
        self.listener.note(f"going on after step {self.state.step}")
