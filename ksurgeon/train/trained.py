"""What a training came to, and its entry in the model's record."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from ksurgeon.surgery.record import Training, record_of
from ksurgeon.train.data import Data
from ksurgeon.train.layerwise import SiteResult
from ksurgeon.train.log import Evaluation
from ksurgeon.train.permutations import Hardened

__all__ = ["Trained", "note_training"]


@dataclass
class Trained:
    """A model after its training.

    Attributes:
        history: evaluations on held-out examples; the first is of the model as it came.
        best: that of the weights that were kept.
        layers: what the training of single layers did.
        hardened: what became of soft permutations, by path.
        broken: examples that could not be read.
        rate: examples per second of the end-to-end training, evaluations included.
        evaluating: seconds of ``seconds`` that evaluations took.
    """

    model: nn.Module
    history: list[Evaluation]
    steps: int
    seconds: float
    rate: float
    best: Evaluation | None = None
    evaluating: float = 0.0
    layers: list[SiteResult] = field(default_factory=list)
    hardened: dict[str, Hardened] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def to_plain(self) -> dict[str, Any]:
        """Everything but the model, as JSON takes it."""
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "rate": self.rate,
            "best": asdict(self.best) if self.best else None,
            "evaluating": self.evaluating,
            "history": [asdict(evaluation) for evaluation in self.history],
            "layers": [asdict(layer) for layer in self.layers],
            "hardened": {path: asdict(hardened) for path, hardened in self.hardened.items()},
            "broken": self.broken,
        }

    @classmethod
    def from_plain(cls, model: nn.Module, plain: Mapping[str, Any]) -> "Trained":
        """What ``to_plain`` was called on, with a model of its own."""
        return cls(
            model=model,
            steps=plain["steps"],
            seconds=plain["seconds"],
            rate=plain["rate"],
            best=Evaluation(**plain["best"]) if plain["best"] else None,
            evaluating=plain["evaluating"],
            history=[Evaluation(**evaluation) for evaluation in plain["history"]],
            layers=[SiteResult(**layer) for layer in plain["layers"]],
            hardened={
                path: Hardened(
                    permutation=tuple(hardened["permutation"]),
                    error=hardened["error"],
                    least_share=hardened["least_share"],
                    changed=tuple(hardened["changed"]),
                )
                for path, hardened in plain["hardened"].items()
            },
            broken=list(plain["broken"]),
        )


def note_training(trained: Trained, teacher: str, data: Data) -> None:
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
            metric=best.metric if best else "",
            held_out=best.examples if best else 0,
            before=first.student if first else {},
            after=best.student if best else {},
            teacher_metrics=best.teacher if best else {},
        )
    )
