"""What counts as harm to a model's outputs: how much they change, and in which directions it matters."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeGuard, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ksurgeon.errors import InputError
from ksurgeon.find.inputs import tensors_of

__all__ = [
    "Divergence",
    "EmbeddingChange",
    "Harm",
    "HarmName",
    "OutputChange",
    "embeddings",
    "harm_for",
    "is_harm",
]

HarmName = Literal["auto", "kl", "outputs", "embeddings"]

_STATES = ("past_key_values", "hidden_states", "attentions", "cross_attentions", "encoder_hidden_states")


class Harm(ABC):
    """A measure of change that adds up over small changes of different layers, as a square does.

    Both methods give a sum over a batch and what it is to be divided by, once all batches are added.

    Attributes:
        name: for files and tables.
        unit: what a shown value is, for tables.
        scale: of the expected square of the probe's slope along a change, so that it is the harm to second
            order.
    """

    name: str
    unit: str
    scale: float

    @abstractmethod
    def probe(self, outputs: Any, mask: Tensor | None, random: torch.Generator) -> tuple[Tensor, float]:
        """A random scalar of the outputs whose squared slope is expected to be the harm, before scaling."""

    @abstractmethod
    def change(self, before: Sequence[Tensor], after: Any, mask: Tensor | None) -> tuple[float, float]:
        """How far outputs ``after`` are from ``before``, which ``chosen`` gave."""

    def chosen(self, outputs: Any) -> list[Tensor]:
        """Those of a model's outputs that count."""
        return chosen_outputs(outputs)

    def shown(self, value: float) -> float:
        """The harm in the unit that people read and give budgets in."""
        return value

    def added(self, shown: float) -> float:
        """The inverse of ``shown``."""
        return shown


class Divergence(Harm):
    """Mean Kullback–Leibler divergence, in nats, of the distributions that logits stand for."""

    name, unit, scale = "kl", "KL divergence, nats", 0.5

    def probe(self, outputs: Any, mask: Tensor | None, random: torch.Generator) -> tuple[Tensor, float]:
        logits = _masked(self.chosen(outputs)[0], mask)
        logs = F.log_softmax(logits.flatten(0, -2).float(), -1)
        drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=random).to(logs.device)
        return logs.gather(1, drawn).sum(), float(len(logs))

    def change(self, before: Sequence[Tensor], after: Any, mask: Tensor | None) -> tuple[float, float]:
        old, new = (_masked(t[0], mask).flatten(0, -2).double() for t in (before, self.chosen(after)))
        logs = F.log_softmax(old, -1)
        divergence = (logs.exp() * (logs - F.log_softmax(new, -1))).sum()
        return float(divergence), float(len(old))


class OutputChange(Harm):
    """Relative change of the outputs; its square, the share of their energy, is what adds up."""

    name, unit, scale = "outputs", "relative change of the outputs", 1.0

    def probe(self, outputs: Any, mask: Tensor | None, random: torch.Generator) -> tuple[Tensor, float]:
        total, energy = torch.zeros(()), 0.0
        for tensor in self.chosen(outputs):
            tensor = _masked(tensor, mask)
            direction = torch.randn(tensor.shape, generator=random).to(tensor.device)
            total = total.to(tensor.device) + (tensor.float() * direction).sum()
            energy += float(tensor.detach().double().square().sum())
        return total, energy

    def change(self, before: Sequence[Tensor], after: Any, mask: Tensor | None) -> tuple[float, float]:
        moved = energy = 0.0
        for old, new in zip(before, self.chosen(after), strict=True):
            old, new = _masked(old, mask).double(), _masked(new, mask).double()
            moved += float((new - old).square().sum())
            energy += float(old.square().sum())
        return moved, energy

    def shown(self, value: float) -> float:
        return max(value, 0.0) ** 0.5

    def added(self, shown: float) -> float:
        return shown**2


class EmbeddingChange(OutputChange):
    """Relative change of what a sentence encoder is used for: its states' mean, normalised."""

    name, unit = "embeddings", "relative change of the embeddings"

    def probe(self, outputs: Any, mask: Tensor | None, random: torch.Generator) -> tuple[Tensor, float]:
        return super().probe(embeddings(self.chosen(outputs)[0], mask), None, random)

    def change(self, before: Sequence[Tensor], after: Any, mask: Tensor | None) -> tuple[float, float]:
        moved = embeddings(self.chosen(after)[0], mask)
        return super().change([embeddings(before[0], mask)], moved, None)


def embeddings(states: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over the positions that ``mask`` shows, of length 1: ``(examples, features)``.

    Args:
        states: ``(examples, positions, features)``.
        mask: ``(examples, positions)``; without one every position counts.
    """
    shown = torch.ones_like(states[..., 0]) if mask is None else mask.to(states.dtype)
    return F.normalize((states * shown[..., None]).sum(1) / shown.sum(1, keepdim=True), dim=-1)


def harm_for(name: HarmName, model: nn.Module, outputs: Any) -> Harm:
    """The harm of that name; "auto" is "kl" where the outputs are logits as far as the model's library tells.

    Raises:
        InputError: the outputs hold no floating-point tensor, or for "embeddings" no states of positions.
    """
    if not chosen_outputs(outputs):
        raise InputError(
            f"the model's output is {type(outputs).__name__} without a floating-point tensor; wrap the model "
            "in a module that gives one"
        )
    if name == "auto":
        name = "kl" if _gives_logits(model, outputs) else "outputs"
    if name == "embeddings" and chosen_outputs(outputs)[0].dim() != 3:
        shape = tuple(chosen_outputs(outputs)[0].shape)
        raise InputError(
            f"embeddings are means over the positions of a text, of outputs (examples, positions, features); "
            f"this model's are {shape}: use kl or outputs"
        )
    harms: dict[str, type[Harm]] = {"kl": Divergence, "outputs": OutputChange, "embeddings": EmbeddingChange}
    return harms[name]()


def is_harm(name: str | None) -> TypeGuard[HarmName]:
    """Whether a plan's word for what it keeps small is one of these, not a metric of the user's."""
    return name in get_args(HarmName)


def _gives_logits(model: nn.Module, outputs: Any) -> bool:
    if isinstance(outputs, Mapping):
        return "logits" in outputs and outputs["logits"].shape[-1] > 1
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or outputs.shape[-1] < 2:
        return False
    classes = getattr(model, "num_classes", None)
    return classes == outputs.shape[-1] or type(model).__module__.startswith("torchvision.models")


def chosen_outputs(outputs: Any) -> list[Tensor]:
    """Logits or the last hidden state where a mapping has them, else all floating-point tensors."""
    if isinstance(outputs, Mapping):
        for name in ("logits", "last_hidden_state"):
            if isinstance(outputs.get(name), Tensor):
                return [outputs[name]]
        outputs = {name: value for name, value in outputs.items() if name not in _STATES}
    return [tensor for tensor in tensors_of(outputs) if tensor.dtype.is_floating_point]


def _masked(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """The positions of a batch that ``mask`` shows, ``(positions, …)``; the tensor itself without a mask."""
    return tensor[mask] if mask is not None and tensor.shape[:2] == mask.shape else tensor
