"""One pass of a model over data, in which every site notes the second moment of what it takes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ksurgeon.calibrate.calibration import Calibration, SiteMoments
from ksurgeon.calibrate.harm import Harm
from ksurgeon.calibrate.moments import Gram, HashedMoment, Moment, SketchedMoment
from ksurgeon.calibrate.rows import WatchParameters, input_rows, output_rows, place_rows, row_mask, shown_rows
from ksurgeon.errors import InputError, KsurgeonError
from ksurgeon.find import Site
from ksurgeon.find.inputs import ExampleInputs, call_model
from ksurgeon.find.unchanged import example_run
from ksurgeon.site_kinds import site_kind

__all__ = ["Run", "calibrate"]

Progress = Callable[[int, int, str], None]
Run = Callable[[nn.Module, ExampleInputs], Any]

_LARGEST = 4096  # entries of the vectors whose moment is kept in full
_SKETCH = 512  # directions that are kept of longer ones, and random rows of slopes
_ROWS = 4096  # vectors of a batch that a site takes, at most
_WIDE, _FEW_ROWS = 2048, 512  # outputs from which on so few slopes of a batch are taken, to save time


def calibrate(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Sequence[ExampleInputs],
    *,
    harm: Harm | None = None,
    run: Run | None = None,
    largest: int = _LARGEST,
    rows: int = _ROWS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Calibration:
    """Second moments at the inputs of the sites, and of the slopes of the outputs where ``harm`` is given.

    One pass over the batches, in eval mode; the model is as before whatever happens. Sites that get the same
    tensor (query, key and value) share one moment. Positions that an ``attention_mask`` hides do not count.

    Args:
        model: the model.
        sites: layers and parameters of the model, and places of insertions, which have no slopes; others are
            passed over.
        batches: inputs that the model takes.
        harm: what slopes are taken of, by one backward pass a batch (for ``kl`` with labels drawn from the
            model: the Fisher information; for ``outputs`` in random directions: Gauss–Newton).
        run: runs the model on a batch where a plain call is not it, as ``lambda model, batch:
            model.generate(**batch)``; slopes are taken of a plain call all the same.
        largest: longest vectors whose moment is kept in full, ``8 · largest²`` bytes a site; longer ones are
            sketched.
        rows: vectors of a batch that a site takes at most, drawn at random.
        seed: of what is drawn.
        progress: called before each batch and at the end.

    Raises:
        InputError: a site took NaN or infinite entries (its path and the batch are named), or the model does
            not run on a batch.
    """
    sites = [site for site in sites if site_kind(site.kind).is_dense or site_kind(site.kind).inserts]
    for share in (True, False):
        meters = _Meters(model, sites, largest, rows, seed, share)
        try:
            _pass(model, batches, meters, harm, run, seed, progress)
        except _Unshared:
            continue
        break
    found = meters.finish(harm.scale if harm is not None else 0.0)
    return Calibration(found, harm.name if harm is not None else "", len(batches))


def _pass(
    model: nn.Module,
    batches: Sequence[ExampleInputs],
    meters: "_Meters",
    harm: Harm | None,
    run: Run | None,
    seed: int,
    progress: Progress | None,
) -> None:
    with example_run(model), _frozen(model):
        for number, batch in enumerate(batches):
            if progress is not None:
                progress(number, len(batches), f"batch {number + 1}")
            meters.begin(number, row_mask(batch))
            random = torch.Generator().manual_seed(1_000_003 * seed + number)
            if run is not None:
                with meters.taking_inputs():
                    run(model, batch)
            if harm is not None:
                with meters.taking_slopes(with_inputs=run is None), torch.enable_grad():
                    outputs = call_model(model, batch)
                    slope, over = harm.probe(outputs, row_mask(batch), random)
                    meters.normaliser += over
                    if slope.requires_grad:
                        slope.backward()
            elif run is None:
                with meters.taking_inputs():
                    call_model(model, batch)
    if progress is not None:
        progress(len(batches), len(batches), "")


class _Meters:
    """Running sums of all sites, and the hooks that feed them."""

    def __init__(
        self, model: nn.Module, sites: Sequence[Site], largest: int, rows: int, seed: int, share: bool
    ) -> None:
        self.model, self.sites, self.largest, self.rows, self.seed = model, sites, largest, rows, seed
        self.inputs: dict[str, Moment] = {}
        self.slopes: dict[str, Moment] = {}
        self.seen: dict[str, int] = dict.fromkeys((site.path for site in sites), 0)
        self.normaliser, self._share = 0.0, share
        self._batch = 0
        self._mask: Tensor | None = None
        self._shared: dict[str, str] = {}  # the site whose moment a site shares, itself where it has its own
        self._last: tuple[Tensor, int, str] | None = None

    def begin(self, batch: int, mask: Tensor | None) -> None:
        self._batch, self._mask, self._last = batch, mask, None

    @contextmanager
    def taking_inputs(self) -> Iterator[None]:
        with self._hooked(True, False):
            yield

    @contextmanager
    def taking_slopes(self, with_inputs: bool) -> Iterator[None]:
        with self._hooked(with_inputs, True):
            yield

    @contextmanager
    def _hooked(self, inputs: bool, slopes: bool) -> Iterator[None]:
        read: dict[int, Site] = {}
        with ExitStack() as stack:
            for site in self.sites:
                if site_kind(site.kind).inserts:
                    if inputs:
                        stack.callback(self._watch_place(site).remove)
                    continue
                if site.parameter:
                    read[id(self.model.get_parameter(site.path))] = site
                    continue
                module = self.model.get_submodule(site.path)
                if site.read:
                    read[id(module.weight)] = site
                    # A hook, even one that does nothing, keeps layers of torch.nn off their fused paths.
                    stack.callback(module.register_forward_pre_hook(lambda *_: None).remove)
                    continue
                if inputs:
                    handle = module.register_forward_pre_hook(_bound(self._before, site), with_kwargs=True)
                    stack.callback(handle.remove)
                if slopes:
                    stack.callback(module.register_forward_hook(_bound(self._after, site)).remove)
            if read:
                stack.enter_context(
                    WatchParameters(
                        read,
                        self._take if inputs else None,
                        self._anchored if slopes else None,
                    )
                )
            yield

    def _watch_place(self, site: Site) -> RemovableHandle:
        owner, hook = self.model.get_submodule(site.owner), _bound(self._at_place, site)
        before = site.facts["place"] == "before"
        return owner.register_forward_pre_hook(hook) if before else owner.register_forward_hook(hook)

    def _at_place(self, site: Site, module: nn.Module, args: tuple[Any, ...], *output: Any) -> None:
        rows = place_rows(next(iter(output or args), None), site)
        self._take(site, rows, rows)

    def _before(self, site: Site, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(value, Tensor):
            self._take(site, value, input_rows(value, module))

    def _after(self, site: Site, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor):
            return self._anchored(site, output, lambda grad: output_rows(grad, module))
        return None

    def _take(self, site: Site, value: Tensor, rows: Tensor) -> None:
        """Note what a site takes, unless the site just before it took the same tensor and has noted it."""
        self.seen[site.path] += rows.numel() // max(1, rows.shape[-1])
        last = self._last if self._share else None
        if last is not None and last[0] is value and last[1] == value._version:
            leader = last[2]
            if self._shared.setdefault(site.path, leader) == leader:
                return
        if self._shared.setdefault(site.path, site.path) != site.path:
            raise _Unshared(site.path)
        self._last = (value, value._version, site.path)
        moment = self.inputs.get(site.path)
        if moment is None:
            moment = self.inputs[site.path] = self._moment(site, rows.device)
        try:
            moment.add(self._some(shown_rows(rows, self._mask), len(self.inputs)))
        except InputError as error:
            raise InputError(
                f"{error} at the input of {site.path}, in batch {self._batch + 1}: the model gives NaN or "
                "Inf on this data; look at the layers before it, or leave the example out"
            ) from error

    def _moment(self, site: Site, device: torch.device) -> Moment:
        if site.in_features // site.blocks > self.largest:
            return SketchedMoment(site.in_features, min(_SKETCH, self.largest), device)
        return Gram(site.in_features, site.blocks, device)

    def _slope_moment(self, site: Site, device: torch.device) -> Moment:
        if site.out_features // site.blocks > self.largest:
            return HashedMoment(site.out_features, _SKETCH, site.blocks, device, self.seed)
        return Gram(site.out_features, site.blocks, device)

    def _anchored(self, site: Site, output: Tensor, rows: Callable[[Tensor], Tensor]) -> Tensor:
        """The output as part of a graph, so that its gradient comes by."""
        if not output.requires_grad:
            output = output + torch.zeros((), device=output.device, dtype=output.dtype, requires_grad=True)

        def note(gradient: Tensor) -> None:
            meter = self.slopes.get(site.path)
            if meter is None:
                meter = self.slopes[site.path] = self._slope_moment(site, gradient.device)
            try:
                most = self.rows if site.out_features <= _WIDE else min(self.rows, _FEW_ROWS)
                meter.add(self._some(shown_rows(rows(gradient), self._mask), len(self.slopes), most))
            except InputError as error:
                raise InputError(
                    f"{error} in the gradient at the output of {site.path}, in batch {self._batch + 1}"
                ) from error

        output.register_hook(note)
        return output

    def _some(self, rows: Tensor, salt: int, most: int | None = None) -> Tensor:
        most = self.rows if most is None else most
        if len(rows) <= most:
            return rows
        random = torch.Generator().manual_seed(self.seed * 7919 + self._batch * 101 + salt)
        return rows[torch.randperm(len(rows), generator=random)[:most].to(rows.device)]

    def finish(self, scale: float) -> dict[str, SiteMoments]:
        found: dict[str, SiteMoments] = {}
        for site in self.sites:
            leader = self._shared.get(site.path)
            if leader is None:
                continue
            source = self.inputs[leader]
            if leader in found:
                moment, mean = found[leader].moment, found[leader].mean
            else:
                moment, mean = source.matrix(), source.mean
            known = SiteMoments(moment, mean, self.seen[site.path])
            # A sketch less the mean need not be a moment.
            known.shiftable = site.has_bias and not site.parameter and isinstance(source, Gram)
            slopes = self.slopes.get(site.path)
            if slopes is not None and self.normaliser > 0:
                known.gradient, known.weight = slopes.root(), scale * self.seen[site.path] / self.normaliser
            found[site.path] = known
        return found


class _Unshared(KsurgeonError):
    """Sites that took one tensor in the first batch took several in a later one."""


def _bound(function: Callable[..., Any], site: Site) -> Callable[..., Any]:
    return lambda *args: function(site, *args)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter wants a gradient."""
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
