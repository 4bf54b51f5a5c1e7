"""What a student is trained for: loss terms against a teacher's outputs, hidden states, and labels."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.calibrate.preprocess import Batch
from ksurgeon.errors import TrainingError
from ksurgeon.find.inputs import as_call, evaluating, tensors_of
from ksurgeon.train.losses import TERMS, Loss, own_loss, task_loss
from ksurgeon.train.outputs import Reader, batch_size, detached, mask_of, term_of
from ksurgeon.train.permutations import mean_entropy, relaxed
from ksurgeon.train.settings import Settings

__all__ = ["DEFAULT_WEIGHTS", "Objective", "Teacher", "captured"]

DEFAULT_WEIGHTS = {
    "logits": 1.0,
    "embedding": 1.0,
    "tokens": 1.0,
    "outputs": 1.0,
    "hidden": 1.0,
    "task": 1.0,
    "loss": 1.0,
    "entropy": 0.0,
}

Targets = dict[str, Tensor]


class Teacher:
    """A model that is only asked; in eval mode, without gradients.

    Args:
        blocks: paths whose outputs are given too, as ``hidden.PATH``.
    """

    def __init__(self, model: nn.Module, reader: Reader, blocks: Sequence[str] = ()) -> None:
        self.model, self.reader, self.blocks = model, reader, tuple(blocks)

    def __call__(self, batch: Batch) -> Targets:
        with evaluating(self.model), captured(self.model, self.blocks) as hidden:
            output = _call(self.model, batch)
            found = detached(self.reader(output, batch))
            found |= {f"hidden.{path}": hidden[path].detach() for path in self.blocks}
        return found


class Objective(nn.Module):
    """The student and its loss terms; ``forward`` gives every term's value for every example.

    It is one module so that DDP and FSDP see all that is trained.

    Args:
        student: is called in whatever mode it is in.
        reader: of the student's outputs.
        pairs: blocks of the student and of the teacher whose outputs are to be alike.
        loss: in place of the terms of outputs and labels, which are then not computed.

    Attributes:
        progress: share of the training that is done.
    """

    def __init__(
        self,
        student: nn.Module,
        reader: Reader,
        settings: Settings,
        pairs: Sequence[tuple[str, str]] = (),
        loss: Loss | None = None,
    ) -> None:
        super().__init__()
        unknown = settings.weights.keys() - DEFAULT_WEIGHTS.keys()
        if unknown:
            raise TrainingError(
                f"weights of {', '.join(sorted(unknown))}: the loss terms are {', '.join(DEFAULT_WEIGHTS)}"
            )
        self.student = student
        self.reader, self.settings, self.pairs = reader, settings, list(pairs)
        self.loss, self.progress = loss, 0.0
        self.weights = DEFAULT_WEIGHTS | settings.weights
        self.projections = nn.ModuleDict()

    def wants(self, term: str) -> bool:
        """Whether the term's weight is not 0."""
        return self.weights[term] > 0

    def forward(self, batch: Batch, targets: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Loss terms by name, each of shape ``(batch,)``."""
        return self.terms_and_outputs(batch, targets)[0]

    def terms_and_outputs(
        self, batch: Batch, targets: Mapping[str, Tensor] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Loss terms, and the student's outputs, by name."""
        terms: dict[str, list[Tensor]] = {}
        outputs: dict[str, Tensor] = {}
        if self.loss is not None:
            given = self.loss, self.student, batch["inputs"]
            terms["loss"] = [own_loss(*given, batch_size(batch), self.progress)]
        else:
            outputs = self._compared(batch, targets, terms)
        if terms and self.wants("entropy") and (soft := relaxed(self.student)):
            first = next(iter(terms.values()))[0]
            terms["entropy"] = [mean_entropy(soft).expand_as(first)]
        return {name: torch.stack(values).mean(0) for name, values in terms.items()}, outputs

    def _compared(
        self, batch: Batch, targets: Mapping[str, Tensor] | None, terms: dict[str, list[Tensor]]
    ) -> dict[str, Tensor]:
        """The student's outputs; their loss terms are added to ``terms``."""
        blocks = [mine for mine, _ in self.pairs] if targets is not None and self.wants("hidden") else []
        with captured(self.student, blocks) as hidden:
            outputs = self.reader(_call(self.student, batch), batch)
        if targets is not None:
            for name, output in outputs.items():
                term = term_of(name)
                if self.wants(term) and name in targets:
                    value = self._compare(term, output, targets[name], batch)
                    terms.setdefault(term, []).append(value)
            for mine, its in self.pairs if blocks else ():
                output = self._project(mine, hidden[mine], targets[f"hidden.{its}"])
                value = self._compare("hidden", output, targets[f"hidden.{its}"], batch)
                terms.setdefault("hidden", []).append(value)
        if batch.get("labels") is not None and self.wants("task"):
            terms["task"] = [task_loss(outputs, batch["labels"], self.reader.task)]
        return outputs

    def _compare(self, term: str, output: Tensor, target: Tensor, batch: Batch) -> Tensor:
        if output.shape != target.shape:
            raise TrainingError(
                f"teacher and student do not match: {term} of shape {tuple(target.shape)} and "
                f"{tuple(output.shape)}; give a teacher of the same outputs, or set weights.{term} = 0"
            )
        return TERMS[term](output, target, mask_of(batch, output), self.settings.temperature)

    def fit_projections(self, batch: Batch, targets: Targets) -> None:
        """Drop pairs of blocks that cannot be compared; add a projection where only the widths differ."""
        with evaluating(self.student), captured(self.student, [mine for mine, _ in self.pairs]) as hidden:
            _call(self.student, batch)
        kept = []
        for mine, its in self.pairs:
            ours, theirs = hidden.get(mine), targets.get(f"hidden.{its}")
            if ours is None or theirs is None or ours.dim() != theirs.dim():
                continue
            dim = _feature_dim(ours)
            widths = ours.shape[dim], theirs.shape[dim]
            if ours.movedim(dim, -1).shape[:-1] != theirs.movedim(dim, -1).shape[:-1]:
                continue
            if widths[0] != widths[1]:
                layer = nn.Linear(*widths, bias=False, device=ours.device, dtype=ours.dtype)
                nn.init.orthogonal_(layer.weight)
                self.projections[mine.replace(".", "/")] = layer
            kept.append((mine, its))
        self.pairs = kept

    def _project(self, path: str, output: Tensor, target: Tensor) -> Tensor:
        name = path.replace(".", "/")
        if name not in self.projections:
            return output
        dim = _feature_dim(output)
        projected: Tensor = self.projections[name](output.movedim(dim, -1))
        return projected.movedim(-1, dim)


def _feature_dim(output: Tensor) -> int:
    return 1 if output.dim() >= 4 else -1


def _call(model: nn.Module, batch: Batch) -> Any:
    args, kwargs = as_call(batch["inputs"])
    return model(*args, **kwargs)


@contextmanager
def captured(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, the first tensor that each of the modules gives, by path."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensors = tensors_of(output)
            if tensors:
                found[path] = tensors[0]

        return hook

    handles = [model.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
