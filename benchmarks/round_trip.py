"""Convert, run, train, save, load and revert one model, every weight taken over exactly."""

import copy
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ksurgeon import MatchError, convert, load, revert, save
from ksurgeon.find.inputs import as_call, evaluating, tensors_of
from ksurgeon.models.inputs import Inputs
from ksurgeon.rules.schema import Replacement, Rule

__all__ = ["EXACT", "round_trip"]

EXACT = Rule(
    name="exact",
    replace=tuple(
        Replacement(find=kind, structure={"structure": "dense"}, start="exact")  # type: ignore[arg-type]
        for kind in ("linear", "pointwise_conv")
    ),
)


def round_trip(model: nn.Module, inputs: Inputs) -> dict[str, object]:
    """What became of each step; ``failed`` names the first one that went wrong, None if none did."""
    fresh = copy.deepcopy(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = _run(model, inputs)
    told: dict[str, object] = {"replaced": 0, "failed": "convert"}
    try:
        told["replaced"] = len(convert(model, EXACT, inputs).results)
    except MatchError:  # each site has its reason
        return told | {"failed": None}
    told["failed"] = "forward"
    result = _run(model, inputs)
    told["change"] = change = _change(result, expected)
    if not change < 1e-4:
        return told
    told["failed"] = "backward"
    args, kwargs = as_call(inputs)
    loss = sum(t.square().mean() for t in tensors_of(model(*args, **kwargs)) if t.requires_grad)
    if isinstance(loss, Tensor):
        loss.backward()
    model.zero_grad()
    told["failed"] = "save and load"
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model")
        loaded = load(Path(folder) / "model", model=fresh)
    if _change(_run(loaded, inputs), result) != 0:
        return told
    told["failed"] = "revert"
    for reverted in (revert(model).state_dict(), revert(loaded).state_dict()):
        if list(reverted) != list(state) or not all(_same(reverted[name], state[name]) for name in state):
            return told
    told["failed"] = None
    return told


def _run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    args, kwargs = as_call(inputs)
    with evaluating(model):
        torch.manual_seed(0)
        return [t.clone() for t in tensors_of(model(*args, **kwargs)) if t.is_floating_point()]


def _change(new: list[Tensor], old: list[Tensor]) -> float:
    total = sum(t.double().square().sum().item() for t in old)
    moved = sum((a.double() - b.double()).square().sum().item() for a, b in zip(new, old, strict=True))
    return float((moved / total) ** 0.5) if total else float(moved)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())
