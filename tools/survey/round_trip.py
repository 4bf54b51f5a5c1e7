"""Convert, run, train, generate with, save, load and revert one model, every weight taken over exactly."""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf, isfinite
from pathlib import Path

import torch
from torch import Tensor, nn

from ksurgeon.errors import MatchError
from ksurgeon.find.inputs import as_call, evaluating, tensors_of
from ksurgeon.models.inputs import Inputs, inputs_for
from ksurgeon.rules.schema import Replacement, Rule
from ksurgeon.surgery.convert import convert
from ksurgeon.surgery.revert import revert
from ksurgeon.surgery.storage import load, save
from tools.survey.generating import generator_of, tokens
from tools.survey.result import Trip

__all__ = ["EXACT", "round_trip"]

EXACT = Rule(
    name="exact",
    replace=tuple(
        Replacement.model_validate({"find": kind, "with": {"structure": "dense"}, "start": "exact"})
        for kind in ("linear", "pointwise_conv")
    ),
)
_OUTPUTS, _GRADIENTS = 1e-4, 1e-2  # how far they may be from the original's, relative
_TIMES = 10  # or how many times as far as other rounding of the weights takes gradients


class _Trip:
    """One model on its way, and what is known of it before it leaves."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.model, self.inputs = model, inputs
        self.told = Trip()
        self.fresh = _with_other_weights(model)
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.outputs = _run(model, inputs)
        self.gradients = _gradients(model, inputs)
        self.generates = isinstance(inputs, dict) and _generates(model, inputs)
        self.tokens = self._tokens(model)

    def go(self) -> str:
        """Every step in turn; the one that did something else than it should, or nothing."""
        model = self.model
        try:
            conversion = convert(model, EXACT, self.inputs)
        except MatchError:  # each site has its reason
            return ""
        steady = (conversion.output_change or 0.0) <= _OUTPUTS  # else it amplifies rounding
        converted = _run(model, self.inputs)
        change = _change(converted, self.outputs)
        gradients = _gradients(model, self.inputs)
        moved = _gradient_change(gradients, self.gradients)
        self.told = Trip(
            replaced=len(conversion.results),
            steady=steady,
            change=change if isfinite(change) else 0.0,
            gradients=moved if isfinite(moved) else 0.0,
            generated=0 if self.tokens is None else self.tokens.numel(),
        )
        if steady and not change <= _OUTPUTS:
            return f"forward: the outputs changed by {change:.1e}"
        if steady and not moved <= _GRADIENTS:
            if moved > _TIMES * self._of_rounding():
                return f"backward: the gradients changed by {moved:.1e}"
            self.told = self.told.model_copy(update={"steady": False})
        owners = {name.rpartition(".")[0] for name in self.gradients.keys() - gradients.keys()}
        for owner in owners:
            if not any(name.startswith(f"{owner}.") for name in gradients):
                return f"backward: no gradient reaches {owner}"
        if not self._speaks_as_before(model):
            return "generate: other tokens"
        with tempfile.TemporaryDirectory() as folder:
            save(model, Path(folder) / "model")
            loaded = load(Path(folder) / "model", model=self.fresh)
        if _change(_run(loaded, self.inputs), converted) != 0:
            return "load: other outputs than before it was saved"
        if not self._speaks_as_before(loaded):
            return "load: other tokens than before it was saved"
        for reverted in (revert(model), revert(loaded)):
            state = reverted.state_dict()
            if list(state) != list(self.state):
                return "revert: another state dict"
            if not all(_same(state[name], tensor) for name, tensor in self.state.items()):
                return "revert: other weights"
            if not self._speaks_as_before(reverted):
                return "revert: other tokens"
        return ""

    def _of_rounding(self) -> float:
        """Change of the original's gradients when its weights are rounded otherwise."""
        model = copy.deepcopy(self.fresh)
        model.load_state_dict(self.state)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=random).to(parameter)
                parameter.mul_(1 + torch.finfo(parameter.dtype).eps * noise)
        return _gradient_change(_gradients(model, self.inputs), self.gradients)

    def _tokens(self, model: nn.Module) -> Tensor | None:
        return tokens(model, self.inputs) if self.generates and isinstance(self.inputs, dict) else None

    def _speaks_as_before(self, model: nn.Module) -> bool:
        now = self._tokens(model)
        return now is self.tokens or (
            self.tokens is not None and now is not None and torch.equal(now, self.tokens)
        )


def round_trip(model: nn.Module, inputs: Inputs) -> Trip:
    """What became of the model, or of the one with a head that generates where there is one.

    The loaded model began with other weights, so that none of the old ones can be left in it.
    """
    generator = generator_of(model)
    if generator is not None:
        try:
            model, inputs = generator, inputs_for(generator)
            _run(model, inputs)
        except Exception as error:
            return Trip(failed=f"generator: {_told(error)}")
    trip = None
    try:
        trip = _Trip(model, inputs)
        failed = trip.go()
    except Exception as error:
        failed = _told(error)
    return (Trip() if trip is None else trip.told).model_copy(update={"failed": failed})


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _with_other_weights(model: nn.Module) -> nn.Module:
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1)
    return fresh


def _generates(model: nn.Module, inputs: dict[str, object]) -> bool:
    try:
        tokens(model, inputs)
    except Exception:
        return False
    return True


def _run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    args, kwargs = as_call(inputs)
    with evaluating(model):
        torch.manual_seed(0)
        return [t.clone() for t in tensors_of(model(*args, **kwargs)) if t.is_floating_point()]


@contextmanager
def _batch_norms_right(model: nn.Module) -> Iterator[None]:
    """PyTorch's backward of batch norm on the CPU is wrong where one image's gradient lies as tokens do.

    Then the strides of a gradient would tell the original from the converted model: each is put in order.
    """

    def in_order(module: nn.Module, args: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(Tensor.contiguous)

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_hook(in_order) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _gradients(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Gradients of the mean square of what the model gives, of every parameter that gets one."""
    args, kwargs = as_call(inputs)
    with evaluating(model), torch.enable_grad(), _batch_norms_right(model):
        torch.manual_seed(0)
        loss = sum(t.square().mean() for t in tensors_of(model(*args, **kwargs)) if t.requires_grad)
        if isinstance(loss, Tensor):
            loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


def _gradient_change(new: dict[str, Tensor], old: dict[str, Tensor]) -> float:
    """Relative change of the gradients that both have."""
    names = [name for name in old if name in new and new[name].shape == old[name].shape]
    return _change([new[name] for name in names], [old[name] for name in names])


def _change(new: list[Tensor], old: list[Tensor]) -> float:
    if [t.shape for t in new] != [t.shape for t in old]:
        return inf
    total = sum(t.double().nan_to_num(0.0, 0.0, 0.0).square().sum().item() for t in old)
    moved = sum(_moved(a.double(), b.double()) for a, b in zip(new, old, strict=True))
    return float((moved / total) ** 0.5) if total else float(moved)


def _moved(new: Tensor, old: Tensor) -> float:
    """Squared distance; what is infinite or NaN in both alike has not moved."""
    alike = (new == old) | (new.isnan() & old.isnan())
    return float(torch.where(alike, 0.0, new - old).square().sum())


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())
