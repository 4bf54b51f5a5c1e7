"""A model as it was and as it becomes, run side by side and held at every site until it is changed."""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.hooks import RemovableHandle

from ksurgeon.calibrate.modes import without_autocast
from ksurgeon.calibrate.rows import input_rows, output_rows, row_mask, shown_rows
from ksurgeon.errors import InputError, SurgeryError
from ksurgeon.find import Site
from ksurgeon.find.inputs import ExampleInputs, as_call, call_model, tensors_of
from ksurgeon.find.unchanged import example_run
from ksurgeon.torch_private import forget_hook_with_kwargs

if TYPE_CHECKING:
    from ksurgeon.calibrate.passes import Stop

__all__ = ["Joint", "Reached", "affordable", "can_compensate", "in_lockstep", "require_greenlet"]

_LARGEST = 4096  # entries of the vectors whose moments are kept
_ROWS = 4096  # vectors of a batch that a site takes, at most
_BYTES = 2 << 30  # what is alive in all passes together
_ALIVE = 2  # times what a layer takes and gives is about what is alive in a pass while it is held there


@dataclass(frozen=True)
class Joint:
    """Moments of a site's inputs x̂ in the changed model, and of its outputs y in the original.

    All are float64, one block for each group of a convolution.

    Attributes:
        moment: of x̂ with itself, ``(groups, in / groups, in / groups)``; about its mean if the site has a
            bias, else about 0.
        cross: of y with x̂, ``(groups, out / groups, in / groups)``, likewise.
        input_mean, output_mean: ``(in,)`` and ``(out,)``.
        rows: vectors taken.
    """

    moment: Tensor
    cross: Tensor
    input_mean: Tensor
    output_mean: Tensor
    rows: int

    def target(self, weight: Tensor, ridge: float) -> Tensor:
        """The weight that makes the best of x̂: of least ``E‖y − T x̂‖² + r‖T − W‖²``.

        Args:
            weight: W, ``(groups, out / groups, in / groups)``.
            ridge: r, relative to the mean square of an entry of x̂.
        """
        mean = self.moment.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        own = ridge * mean
        eye = torch.eye(self.moment.shape[-1], dtype=self.moment.dtype, device=self.moment.device)
        system = self.moment + torch.where(own > 0, own, 1.0) * eye
        wanted = self.cross + torch.where(own > 0, own, 1.0) * weight.double()
        return torch.linalg.solve(system, wanted, left=False)


@dataclass(frozen=True)
class Reached:
    """A site at which all batches wait; ``replace`` it before the next one is asked for."""

    site: Site
    joint: Joint
    replace: Callable[[nn.Module], None]


def can_compensate(site: Site) -> bool:
    """Whether a site is a layer that its owner calls, and small enough for its moments to be kept."""
    called = not (site.nodes or site.parameter or site.read or "Transpose" in site.class_name)
    return called and site.in_features // site.blocks <= _LARGEST


def require_greenlet() -> None:
    """Return if forward passes can be held inside a layer.

    Raises:
        SurgeryError: greenlet is not installed.
    """
    if find_spec("greenlet") is None:
        raise SurgeryError(
            "error propagation holds forward passes inside of layers, which needs greenlet: "
            "pip install greenlet, or fit each layer by itself with compensate=False, the "
            "command with --no-compensate"
        )


def in_lockstep(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Sequence[ExampleInputs],
    *,
    rows: int = _ROWS,
    seed: int = 0,
) -> Generator[Reached]:
    """Walk a model from front to back, with every site that was passed replaced.

    Each batch runs twice at once, in greenlets: through the original layers and, from the first replaced
    site on, through the replacements. So the whole walk costs two forward passes, and the memory of what is
    alive in them at one site; ``affordable`` tells how many batches that allows. Threads in their place would
    each hold a team of OpenMP's. The model itself is never changed. A layer that is called again later is
    not stopped at again. Sites that no batch reaches are not yielded.

    Args:
        model: the model.
        sites: such that ``can_compensate`` holds.
        batches: inputs that the model takes.
        rows: vectors of a batch that a site takes at most, drawn at random.
        seed: of what is drawn.

    Raises:
        InputError: a site took or gave NaN or infinite entries.
        SurgeryError: the changed model calls its layers in another order than the original one.
    """
    from ksurgeon.calibrate.passes import HeldPass, end_all, hold_at, run_both

    with ExitStack() as stack:
        stack.enter_context(example_run(model))
        replacements: dict[str, nn.Module] = {}
        paths = {model.get_submodule(site.path): site.path for site in sites}
        hook = register_module_forward_hook(hold_at(paths, replacements), with_kwargs=True)
        stack.callback(_remove, hook)
        known = {site.path: site for site in sites}
        pairs = [(HeldPass(model, batch, False), HeldPass(model, batch, True)) for batch in batches]
        stack.callback(end_all, [run for pair in pairs for run in pair])
        waiting = {number: run_both(pair) for number, pair in enumerate(pairs)}
        while stops := {number: stop for number, stop in waiting.items() if stop is not None}:
            path = next(iter(stops.values())).path
            site, sums = known[path], _Sums(known[path], model.get_submodule(path))
            here = [number for number, stop in stops.items() if stop.path == path]
            for number in here:
                stop, random = stops[number], torch.Generator().manual_seed(seed * 1_000_003 + number)
                try:
                    sums.add(stop, row_mask(batches[number]), rows, random)
                except InputError as error:
                    raise InputError(f"{error} at {path}, in batch {number + 1}") from error
            stop = stops = None  # type: ignore[assignment]  # let go of what the batches wait with
            yield Reached(site, sums.joint(), partial(replacements.__setitem__, path))
            for number in here:
                waiting[number] = None
                waiting[number] = run_both(pairs[number])


def affordable(
    model: nn.Module, batches: Sequence[ExampleInputs], memory: int = _BYTES
) -> Sequence[ExampleInputs]:
    """As many of the batches as can be held at once in about so many bytes, evenly chosen; one at least.

    Reckons with the most that a layer takes and gives in one run of the longest batch.
    """
    most = 0

    def hook(layer: nn.Module, args: Any, output: Any) -> None:
        nonlocal most
        if not layer._modules:
            tensors = tensors_of((args, output))
            most = max(most, sum(tensor.numel() * tensor.element_size() for tensor in tensors))

    longest = max(batches, key=lambda batch: sum(t.numel() for t in tensors_of(as_call(batch))))
    handle = register_module_forward_hook(hook)
    try:
        with example_run(model):
            call_model(model, longest)
    finally:
        handle.remove()
    count = max(1, memory // max(1, 2 * _ALIVE * most))
    return batches if count >= len(batches) else [batches[i * len(batches) // count] for i in range(count)]


def _remove(hook: RemovableHandle) -> None:
    """Remove a global hook, with its flag for keyword arguments, which torch leaves to slow all modules."""
    hook.remove()
    forget_hook_with_kwargs(hook.id)


class _Sums:
    """Running sums of the moments of one site.

    Where they are to be centred, the first batch's means are taken off at once: entries that hardly vary
    would otherwise be lost between squares of their means.
    """

    def __init__(self, site: Site, layer: nn.Module) -> None:
        self.layer, self.groups, self.centred = layer, site.blocks, site.has_bias
        self.count = 0
        self.inputs = self.outputs = self.moment = self.cross = torch.zeros((), dtype=torch.float64)
        self.means: tuple[Tensor, Tensor] | None = None

    def add(self, stop: "Stop", mask: Tensor | None, most: int, random: torch.Generator) -> None:
        """Add the rows of one batch.

        Raises:
            InputError: entries that are NaN or infinite.
        """
        x = shown_rows(input_rows(stop.changed, self.layer), mask)
        y = shown_rows(output_rows(stop.output, self.layer), mask)
        if len(x) > most:
            some = torch.randperm(len(x), generator=random)[:most].to(x.device)
            x, y = x[some], y[some]
        x, y = (rows.to(torch.promote_types(rows.dtype, torch.float32)) for rows in (x, y))
        if self.centred and len(x):
            self.means = self.means or (_mean(x), _mean(y))
            x, y = x - self.means[0].to(x.device), y - self.means[1].to(y.device)
        inputs, outputs = x.sum(0, dtype=torch.float64), y.sum(0, dtype=torch.float64)
        if not bool(inputs.isfinite().all() and outputs.isfinite().all()):
            raise InputError("NaN or infinite entries")
        x, y = (rows.unflatten(1, (self.groups, -1)).movedim(1, 0) for rows in (x, y))
        self.count += x.shape[1]
        self.inputs, self.outputs = self.inputs.to(x.device) + inputs, self.outputs.to(x.device) + outputs
        with without_autocast(x.device):
            self.moment = self.moment.to(x.device) + (x.mT @ x).double()
            self.cross = self.cross.to(x.device) + (y.mT @ x).double()

    def joint(self) -> Joint:
        count = max(self.count, 1)
        inputs, outputs = self.inputs / count, self.outputs / count
        moment, cross = self.moment / count, self.cross / count
        if self.centred:
            x, y = (mean.unflatten(0, (self.groups, -1)) for mean in (inputs, outputs))
            moment, cross = moment - x[:, :, None] * x[:, None], cross - y[:, :, None] * x[:, None]
        if self.means is not None:
            inputs, outputs = (
                mean + at.to(mean.device) for mean, at in zip((inputs, outputs), self.means, strict=True)
            )
        return Joint(moment, cross, inputs, outputs, self.count)


def _mean(rows: Tensor) -> Tensor:
    return rows.mean(0, dtype=torch.float64).to(rows.dtype)
