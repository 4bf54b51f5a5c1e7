"""The end-to-end training: steps, evaluations, checkpoints, and what happens when it goes wrong."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ksurgeon.errors import DataError, TrainingError, TrainingStopped
from ksurgeon.train.checkpoint import Checkpoints
from ksurgeon.train.clock import Clock, rate_at
from ksurgeon.train.data import Data
from ksurgeon.train.evaluate import evaluate
from ksurgeon.train.faults import describe_fault
from ksurgeon.train.log import Evaluation, Listener, Step
from ksurgeon.train.modes import training_mode
from ksurgeon.train.objective import Objective
from ksurgeon.train.parameters import Averaged, balance_factors, parameter_groups
from ksurgeon.train.permutations import relaxed, set_temperature
from ksurgeon.train.preprocess import Batch
from ksurgeon.train.processes import Stop, signals
from ksurgeon.train.saving import pack, unpack
from ksurgeon.train.settings import Settings
from ksurgeon.train.targets import TargetSource

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Loop"]

# A gradient that is nothing but rounding, as that of a key's bias, must not be blown up to a whole step.
_EPSILON = 1e-6


class Loop:
    """Trains an objective, and leaves the best weights it met in the student.

    Args:
        targets: gives the teacher's outputs for a batch; None without a teacher.
        folder: for checkpoints; None keeps none.
        resume: go on from the last checkpoint there, if there is one.
        used: seconds that were spent before, of those that the settings allow.
    """

    def __init__(
        self,
        objective: Objective,
        targets: TargetSource | None,
        data: Data,
        settings: Settings,
        accelerator: "Accelerator",
        listener: Listener,
        folder: Path | None = None,
        resume: bool = False,
        used: float = 0.0,
    ) -> None:
        self.objective, self.targets, self.data, self.settings = objective, targets, data, settings
        self.accelerator, self.listener = accelerator, listener
        self.clock = Clock(settings, data.batches_per_epoch, used)
        optimiser = torch.optim.AdamW(parameter_groups(objective, settings), betas=(0.9, 0.99), eps=_EPSILON)
        self.model, wrapped = accelerator.prepare(objective, optimiser)
        self.optimiser: Any = wrapped
        self.parameters = [p for group in optimiser.param_groups for p in group["params"]]
        self.average = Averaged(self.parameters, settings.ema)
        self.checkpoints = Checkpoints(folder / "checkpoints") if folder is not None else None
        self.step, self.evaluations, self.stale = 0, 0, 0
        self.scales: dict[str, float] = {}
        self.best: tuple[float, list[Tensor]] | None = None
        self.history: list[Evaluation] = []
        self._saved = self._mark = used
        if resume and self.checkpoints is not None:
            self._resume()

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
            signals() as stop,
            training_mode(self.objective.student, self.settings, self.targets is not None),
        ):
            batches = self.data.training_batches(self.step, rank, processes)
            if not self.scales:
                first = next(batches)
                self._find_scales(first)
                batches = chain([first], batches)
            if not self.history:
                self._evaluate()
            started()
            try:
                while self._goes_on():
                    self._train(next(batches))
                    if self._due():
                        self._evaluate()
                    self._keep(stop)
            except (TrainingError, DataError):
                self._take_best()
                raise
            if not self.history or self.history[-1].step != self.step:
                self._evaluate()
        self._take_best()
        return self.history

    def _goes_on(self) -> bool:
        if self.settings.patience and self.stale >= self.settings.patience:
            self.listener.note(f"stopped at step {self.step}: no better for {self.stale} evaluations")
            return False
        return self._progress() < 1

    def _progress(self) -> float:
        elapsed = self.clock.elapsed
        if self.clock.seconds is not None and self.accelerator.num_processes > 1:
            elapsed = self.accelerator.reduce(torch.tensor(elapsed, device=self.accelerator.device)).item()
            elapsed /= self.accelerator.num_processes
        return self.clock.progress(self.step, elapsed)

    def _train(self, micro_batches: list[Batch]) -> None:
        progress = self._progress()
        factor = rate_at(progress, self.settings.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        if relaxed(self.objective.student):
            first, last = self.settings.temperatures
            set_temperature(self.objective, first * (last / first) ** progress)
        sums = self._backward(micro_batches)
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.settings.clip or float("inf"))
        values = {name: value / self.data.batch for name, value in self._summed(sums).items()}
        loss = self._weigh(values)
        gradient = float(norm) if norm is not None else 0.0
        scaled = self.accelerator.mixed_precision == "fp16"  # whose scaler leaves out such a step itself
        if not isfinite(loss) or not (isfinite(gradient) or scaled):
            raise TrainingError(self._explain(micro_batches[-1]))
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        self.average.update(self.step)
        every = self.settings.balance_factors
        if every and self.step % every == 0 and not self.average.decay:
            balance_factors(self.objective, getattr(self.optimiser, "optimizer", self.optimiser))
        seconds = self.clock.elapsed
        report = Step(
            step=self.step,
            total=self.clock.total,
            progress=self.clock.progress(self.step, seconds),
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
            self.accelerator.log({"loss": loss, "lr": self.settings.lr * factor, **values}, step=self.step)

    def _backward(self, micro_batches: list[Batch]) -> dict[str, Tensor]:
        """Gradients of a whole batch, and the sums of the loss terms over this process's examples."""
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                terms = self._terms(self.model, batch)
                share = self.accelerator.num_processes / self.data.batch
                weighted = [value.sum() * self._weight(name) for name, value in terms.items()]
                self.accelerator.backward(torch.stack(weighted).sum() * share)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach().sum()
        return sums

    def _terms(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        batch = self._here(batch)
        with self.accelerator.autocast():
            targets = self.targets(batch) if self.targets is not None else None
            terms: dict[str, Tensor] = model(batch, targets)
        if not terms:
            raise TrainingError(
                "there is nothing to learn: the data has no labels and there is no teacher, or teacher and "
                "student give no outputs of the same names, or all weights are 0"
            )
        return terms

    def _here(self, batch: Batch) -> Batch:
        from accelerate.utils import send_to_device

        moved: Batch = send_to_device(batch, self.accelerator.device)
        return moved

    def _find_scales(self, micro_batches: list[Batch]) -> None:
        """What each term is divided by: its value before the first step, on the whole first batch."""
        sums: dict[str, Tensor] = {}
        with torch.no_grad():  # without the wrapper, which would synchronise processes
            for batch in micro_batches:
                for name, value in self._terms(self.objective, batch).items():
                    sums[name] = sums.get(name, torch.zeros(())) + value.sum().cpu()
        free = ("task", "entropy")
        self.scales = {
            name: max(value / self.data.batch, 1e-8) if self.settings.balance and name not in free else 1.0
            for name, value in self._summed(sums).items()
        }

    def _weight(self, name: str) -> float:
        return self.objective.weights[name] / self.scales.get(name, 1.0)

    def _weigh(self, values: dict[str, float]) -> float:
        return sum(value * self._weight(name) for name, value in values.items())

    def _summed(self, sums: dict[str, Tensor]) -> dict[str, float]:
        stacked = torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in sums.values()])
        total: Tensor = self.accelerator.reduce(stacked.to(self.accelerator.device))
        return dict(zip(sums, total.tolist(), strict=True))

    def _explain(self, batch: Batch) -> str:
        fault = describe_fault(self.objective.student, self._here(batch))
        kept = "the best weights so far" if self.best else "the weights of the start"
        place = f"; the last checkpoint is in {self.checkpoints.folder}" if self.checkpoints else ""
        return (
            f"the loss is not finite at step {self.step + 1}: {fault}. The model holds {kept}{place}; try a "
            f"smaller learning rate than {self.settings.lr:g}, or precision no"
        )

    def _due(self) -> bool:
        return self._progress() >= self.evaluations / self.settings.evaluate

    def _evaluate(self) -> None:
        self.evaluations += 1
        while self.evaluations / self.settings.evaluate <= self._progress() < 1:
            self.evaluations += 1
        with self.average.in_place() if self.step else nullcontext():
            found = evaluate(self.objective, self.targets, self.data, self.accelerator, self._weigh)
            if found is None:
                self.best = (float("inf"), [p.detach().clone() for p in self.parameters])
                return
            loss, student, teacher = found
            is_best = self.best is None or loss < self.best[0]
            if is_best:
                self.best = (loss, [p.detach().clone() for p in self.parameters])
        self.stale = 0 if is_best else self.stale + 1
        evaluation = Evaluation(
            step=self.step,
            seconds=self.clock.elapsed,
            loss=loss,
            student=student,
            teacher=teacher,
            is_best=is_best,
        )
        self.history.append(evaluation)
        self._mark = self.clock.elapsed
        self.listener.evaluated(evaluation)
        if self.accelerator.trackers:
            self.accelerator.log({f"held_out/{k}": v for k, v in student.items()}, step=self.step)

    def _take_best(self) -> None:
        if self.best is not None:
            self.assign(self.best[1])

    def _keep(self, stop: Stop) -> None:
        """A checkpoint, if one is due or a signal came."""
        if self.accelerator.num_processes > 1:
            asked = torch.tensor(float(bool(stop)), device=self.accelerator.device)
            if not stop and self.accelerator.reduce(asked).item():
                stop.signal = 15
        if self.checkpoints is None and not stop:
            return
        due = self.clock.elapsed - self._saved >= self.settings.checkpoint * 60
        if self.accelerator.num_processes > 1:
            due = bool(self.accelerator.reduce(torch.tensor(float(due))).item())
        if due or stop:
            self.save()
        if stop:
            place = f"; the checkpoint is in {self.checkpoints.folder}" if self.checkpoints else ""
            raise TrainingStopped(f"stopped by a signal after step {self.step}{place}; go on with --resume")

    def save(self) -> None:
        """Write a checkpoint, where there is a folder; all processes take part.

        Raises:
            FolderError: the disk is full, or the folder cannot be written.
        """
        if self.checkpoints is None:
            return
        tensors, plain = pack(self)
        if self.accelerator.is_main_process:
            self.checkpoints.save(self.step, tensors, plain)
        self.accelerator.wait_for_everyone()
        self._saved = self.clock.elapsed

    def _resume(self) -> None:
        assert self.checkpoints is not None
        saved = self.checkpoints.last()
        if saved is None:
            self.listener.note(f"there is no checkpoint in {self.checkpoints.folder}; starting anew")
            return
        unpack(self, saved)
        self._saved = self.clock.before
        self.listener.note(f"going on after step {self.step}")

    @torch.no_grad()
    def assign(self, values: Sequence[Tensor]) -> None:
        """Give the trained parameters these values."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
