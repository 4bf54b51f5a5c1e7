"""The end-to-end training: steps, evaluations, checkpoints, and what happens when it goes wrong."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from math import isfinite

import torch

from ksurgeon.calibrate.preprocess import Batch
from ksurgeon.errors import FolderError, TrainingError, TrainingStopped
from ksurgeon.train.checkpoint import Checkpoints
from ksurgeon.train.clock import rate_at
from ksurgeon.train.evaluate import Evaluator
from ksurgeon.train.faults import describe_fault
from ksurgeon.train.keeper import Keeper
from ksurgeon.train.log import Listener, Step
from ksurgeon.train.modes import training_mode
from ksurgeon.train.parameters import Averaged, balance_factors, make_optimiser
from ksurgeon.train.passes import Passes
from ksurgeon.train.permutations import relaxed, set_temperature
from ksurgeon.train.processes import Stop, agreed, signals
from ksurgeon.train.saving import pack, unpack
from ksurgeon.train.settings import Settings
from ksurgeon.train.state import State

__all__ = ["Loop"]

_FEW = 50  # steps of which the user is told that they were few


class Loop:
    """Trains an objective, and leaves the best weights it met in the student.

    Args:
        passes: of the objective.
        keeper: of the best weights; holds those of the start.
        finish: brings the student, its weights averaged, into its last form, before the last evaluation.
        fallback: as ``State`` has it.
        checkpoints: where they go; None keeps none.
        resume: go on from the last checkpoint there, if there is one; otherwise those there are removed when
            the training begins.
        stop: is told of signals.
    """

    def __init__(
        self,
        passes: Passes,
        evaluator: Evaluator,
        keeper: Keeper,
        finish: Callable[[], None],
        settings: Settings,
        listener: Listener,
        fallback: Keeper | None = None,
        checkpoints: Checkpoints | None = None,
        resume: bool = False,
        stop: Stop | None = None,
    ) -> None:
        self.passes, self.objective, self.accelerator = passes, passes.objective, passes.accelerator
        self.data, self.settings, self.listener, self.finish = evaluator.data, settings, listener, finish
        self.checkpoints, self.stop = checkpoints, Stop() if stop is None else stop
        optimiser = make_optimiser(self.objective, settings)
        model, wrapped = self.accelerator.prepare(self.objective, optimiser)
        clock = evaluator.clock
        clock.start()
        trained = [p for group in optimiser.param_groups for p in group["params"]]
        self.state = State(
            objective=self.objective,
            model=model,
            optimiser=wrapped,
            average=Averaged(trained, settings.ema),
            clock=clock,
            data=self.data,
            settings=settings,
            evaluator=evaluator,
            keeper=keeper,
            fallback=fallback,
        )
        self._saved = self._mark = clock.elapsed
        self._anew = not resume
        if checkpoints is not None and resume:
            self._resume(checkpoints)

    def run(self) -> None:
        """Train to the end; the student then holds the best weights, also where this raises.

        Raises:
            TrainingError: the loss is not finite.
            TrainingStopped: a signal came; a checkpoint was written where there is a folder.
            DataError: too many examples cannot be read, or labels are out of range.
            FolderError: a checkpoint could not be written; earlier ones are as they were.
        """
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        with (
            signals(self.stop),
            training_mode(self.objective.student, self.settings, self.passes.targets is not None),
        ):
            try:
                self._run(self.data.training_batches(self.state.step, rank, processes))
            finally:
                self.state.keeper.restore()

    def _run(self, batches: Iterator[list[Batch]]) -> None:
        state = self.state
        if state.keeper.best is None:
            self._evaluate()
        elif not state.keeper.best.is_finite():
            raise self._broken()
        if self._anew and self.checkpoints is not None and self.accelerator.is_main_process:
            self.checkpoints.remove()
        if not state.planned:
            state.planned = max(1, min(self.settings.evaluate, state.evaluator.affordable()))
        while self._goes_on():
            self._train(next(batches))
            if self._due():
                self._evaluate()
            self._keep()
        if not state.step:
            self.listener.note("no step of the whole was taken: the time was over before; give more minutes")
        elif self._takes_last or state.keeper.history[-1].step != state.step:
            if self._takes_last:
                state.evaluator.take_all()
            self._evaluate(self.finish)
        if 0 < state.step < _FEW and state.clock.total is None:
            self.listener.note(
                f"only {state.step} steps fitted into the time; give more minutes, or a smaller batch than "
                f"{self.data.batch}"
            )

    @property
    def _takes_last(self) -> bool:
        return self.settings.final == "last"

    def _goes_on(self) -> bool:
        state = self.state
        if self.settings.patience and state.stale >= self.settings.patience:
            self.listener.note(f"stopped at step {state.step}: no better for {state.stale} evaluations")
            return False
        return self._progress() < 1

    def _progress(self) -> float:
        clock = self.state.clock
        elapsed = clock.elapsed
        if clock.seconds is not None:
            elapsed = agreed(self.accelerator, elapsed)
        return clock.progress(self.state.step, elapsed)

    def _train(self, micro_batches: list[Batch]) -> None:
        state = self.state
        progress = self._progress()
        self.objective.progress = progress
        factor = rate_at(progress, self.settings)
        for group in state.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        if relaxed(self.objective.student):
            first, last = self.settings.temperatures
            set_temperature(self.objective, first * (last / first) ** progress)
        scales = state.evaluator.scales
        values = self.passes.backward(state.model, micro_batches, scales)
        norm = self.accelerator.clip_grad_norm_(state.parameters, self.settings.clip or float("inf"))
        loss = self.passes.weigh(values, scales)
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

    def _explain(self, what: str, batches: Iterable[Batch]) -> str:
        fault = describe_fault(self.objective.student, map(self.passes.here, batches))
        place = f"; the last checkpoint is in {self.checkpoints.folder}" if self.checkpoints else ""
        return (
            f"{what}: {fault}. The model holds the best weights so far{place}; try a smaller learning rate "
            f"than {self.settings.lr:g}, or precision no"
        )

    def _broken(self) -> TrainingError:
        what = f"the loss of the held-out examples is not finite after step {self.state.step}"
        return TrainingError(self._explain(what, self.data.batches(self.state.evaluator.numbers)))

    def _due(self) -> bool:
        """Whether it is time for an evaluation, and there is time for it; the last one is not due here."""
        progress = self._progress()
        if not self.state.evaluations / self.state.planned <= progress < 1:
            return False
        return self.state.evaluator.affordable() > 1

    def _evaluate(self, finish: Callable[[], None] = lambda: None) -> None:
        state = self.state
        while state.planned and state.evaluations / state.planned <= self._progress() < 1:
            state.evaluations += 1
        with state.average.in_place() if state.step else nullcontext():
            finish()
            evaluation = state.evaluator(state.step)
            if not evaluation.is_finite():
                raise self._broken()
            earlier = [each for each in state.keeper.history if each.step]
            is_better = state.keeper.consider(evaluation, anyway=self._takes_last)
        if self._takes_last:
            is_better = all(evaluation.betters(each) for each in earlier)
        state.stale = 0 if is_better else state.stale + 1
        self._mark = state.clock.elapsed
        if self.accelerator.trackers:
            metrics = {f"held_out/{name}": value for name, value in evaluation.student.items()}
            self.accelerator.log(metrics, step=state.step)

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
                    f"{error}; the checkpoint before is whole: continue with --resume"
                ) from error
        self.accelerator.wait_for_everyone()
        self._saved = self.state.clock.elapsed

    def _resume(self, checkpoints: Checkpoints) -> None:
        saved = checkpoints.last()
        if saved is None:
            self.listener.note(f"there is no checkpoint in {checkpoints.folder}; starting from the beginning")
            return
        unpack(self.state, saved)
        self._saved = self.state.clock.before
        self.listener.note(f"continuing after step {self.state.step}")
