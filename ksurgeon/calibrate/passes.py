"""Forward passes that are held inside a layer, in greenlets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from ksurgeon.calibrate.modes import OwnModes
from ksurgeon.errors import SurgeryError
from ksurgeon.find.inputs import ExampleInputs, call_model
from ksurgeon.kernels.eager import has_transforms

__all__ = ["HeldPass", "Stop", "end_all", "hold_at", "run_both"]


@dataclass(frozen=True)
class Stop:
    path: str
    changed: Tensor  # what the layer takes in the changed model
    output: Tensor  # and gives in the original one


class HeldPass(greenlet):
    """One forward pass that can be held: a switch to it gives where it waits, or None at its end."""

    def __init__(self, model: nn.Module, batch: ExampleInputs, changed: bool) -> None:
        super().__init__(self._call)
        self._model, self._batch, self.changed, self._modes = model, batch, changed, OwnModes()

    def _call(self) -> None:
        call_model(self._model, self._batch)

    def switch(self, *args: Any) -> Any:
        """Go on with the pass, in its own modes: a forward may be held inside autocast and the like."""
        with self._modes.exchanged():
            return super().switch(*args)

    def end(self) -> None:
        """Leave the pass where it is held, and all that its forward has opened."""
        with self._modes.exchanged():
            self.throw(GreenletExit)


def hold_at(paths: Mapping[nn.Module, str], replacements: Mapping[str, nn.Module]) -> Callable[..., Any]:
    """Holds a pass at a layer, and lets the replacement, once there is one, answer in the changed model."""

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        run, path = getcurrent(), paths.get(layer)
        if path is None or not isinstance(run, HeldPass):
            return None
        if path not in replacements:
            if has_transforms():
                raise SurgeryError(
                    f"the model calls {path} inside of torch.func (vmap, grad or jvp), where a run "
                    "cannot wait; fit without error propagation (compensate=False, --no-compensate)"
                )
            assert run.parent is not None
            run.parent.switch((path, args[0] if args else next(iter(kwargs.values())), output))
        new = replacements.get(path, layer) if run.changed else layer
        return new(*args, **kwargs) if new is not layer else None

    return hook


def run_both(pair: tuple[HeldPass, HeldPass]) -> Stop | None:
    """Run the original and the changed model on to where both wait next."""
    before, after = (run.switch() for run in pair)
    if before is None and after is None:
        return None
    if before is None or after is None or before[0] != after[0]:
        ways = [stop[0] if stop is not None else "its end" for stop in (before, after)]
        raise SurgeryError(
            f"the changed model comes to {ways[1]} where the original one comes to {ways[0]}; which layers "
            "it calls depends on the data, so fit without error propagation (compensate=False)"
        )
    return Stop(before[0], after[1], before[2])


def end_all(runs: Sequence[HeldPass]) -> None:
    for run in runs:
        if run:
            run.end()
