"""Milliseconds of each option, measured on this machine beside the dense layer, in turns, and kept."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor, nn

from ksurgeon.find import Finder, Site
from ksurgeon.find.recording import TensorSpec
from ksurgeon.find.unchanged import example_run
from ksurgeon.kernels import chosen_backend, machine
from ksurgeon.kernels.cache import Cache, cpu_model
from ksurgeon.kmatrix.structures import Structure
from ksurgeon.planner.options import Option, SiteOptions
from ksurgeon.planner.way import Way
from ksurgeon.site_kinds import site_kind

__all__ = ["Stopwatch", "refuse_slower"]

_TURN, _TURNS, _SECONDS = 2e-3, 7, 1.5
_SHARED = 1 << 16  # entries for which PyTorch takes two threads


class Stopwatch:
    """Times of layers at the shapes that a run showed, each kind of layer measured once on a machine.

    Args:
        finder: what the example run told.
        way: how the model is to be run.
    """

    def __init__(self, finder: Finder, way: Way) -> None:
        self._finder, self._way = finder, way
        self._cache: Cache | None = None
        self._known: dict[str, dict[str, float]] = {}

    def time(self, site: Site, options: SiteOptions) -> None:
        """Fill in the latency of all options of a site; sites that no run called stay unmeasured."""
        x = self._input(site)
        if x is None:
            return
        with self._way.on_threads():
            self._time(self._finder.model.get_submodule(site.path), options, self._way.inputs(x))

    def _time(self, module: nn.Module, options: SiteOptions, x: Tensor) -> None:
        key = f"{_key(module, x)}, {self._way}"
        wanted = {_name(option): option for option in options.options if option.is_open}
        known = self._known.get(key) or self._kept(key)
        missing = [name for name in wanted if name not in known]
        if missing:
            layers = {n: self._way.layer(module, wanted[n].structure) for n in dict.fromkeys(["", *missing])}
            measured = _in_turns({name: self._way.run(layer, x) for name, layer in layers.items()})
            # In terms of the dense layer measured with them: another day's load must not tell for or against.
            base = known.setdefault("", measured[""])
            known |= {name: base * measured[name] / measured[""] for name in missing}
            self._keep(key, known)
        self._known[key] = known
        for name, option in wanted.items():
            option.latency = known[name]

    def whole(self) -> float:
        """Milliseconds of the whole model on the example inputs."""
        return self.together({})[0]

    def together(self, taken: Mapping[Site, Structure]) -> tuple[float, float]:
        """Milliseconds of the whole model as it is and with all of these replacements, in turns.

        Args:
            taken: what takes the place of each site's layer.
        """
        finder = self._finder
        assert finder.example_inputs is not None
        models = {"before": finder.model}
        if taken:
            models["after"] = copy.deepcopy(finder.model)
            for site, structure in taken.items():
                kind, plain = site_kind(site.kind), replace(site, parts=1)
                new = kind.build(finder.model, plain, structure, "random")
                for path in (site.path, *site.aliases):
                    models["after"].set_submodule(path, new)
        inputs, calls = self._way.inputs(finder.example_inputs), {}
        with self._way.on_threads(), ExitStack() as stack:
            for name, model in models.items():
                changed = self._way.model(model)
                stack.enter_context(example_run(changed))
                calls[name] = self._way.run(changed, inputs)
            times = _in_turns(calls)
        return times["before"], times.get("after", times["before"])

    def _input(self, site: Site) -> Tensor | None:
        """A random input of the site's own shape, for the batch that the example inputs have."""
        recording = self._finder.recording
        if recording is None or site.parameter or site.read or not site_kind(site.kind).is_dense:
            return None
        module = self._finder.model.get_submodule(site.path)
        call = recording.first.get(id(module))
        spec = call.args[0] if call is not None and call.args else None
        if not isinstance(spec, TensorSpec):
            return None
        given = _batch(self._finder)
        shape = list(spec.shape)
        if recording.batch and shape[0] % recording.batch == 0:
            shape[0] = shape[0] * given // recording.batch or 1
        generator = torch.Generator().manual_seed(0)
        return torch.randn(shape, generator=generator).to(spec.device, spec.dtype)

    @property
    def cache(self) -> Cache:
        if self._cache is None:
            device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
            about = f"{cpu_model()}; {device}; torch {torch.__version__}; {chosen_backend()}; {machine()}"
            self._cache = Cache("layers", about)
        return self._cache

    def _kept(self, key: str) -> dict[str, float]:
        kept = self.cache.get(key)
        if not isinstance(kept, dict):
            return {}
        return {name: value for name, value in kept.items() if isinstance(value, float) and value > 0}

    def _keep(self, key: str, times: dict[str, float]) -> None:
        self.cache.put(key, times)


def _batch(finder: Finder) -> int:
    from ksurgeon.find.inputs import as_call, tensors_of

    assert finder.example_inputs is not None
    tensors = tensors_of(as_call(finder.example_inputs))
    return tensors[0].shape[0] if tensors and tensors[0].dim() else 1


def _key(module: nn.Module, x: Tensor) -> str:
    weight = module.weight
    assert isinstance(weight, Tensor)
    stride = getattr(module, "stride", "")
    return (
        f"{type(module).__name__} {tuple(weight.shape)} {stride} bias {module.bias is not None}, "
        f"{tuple(x.shape)} {x.dtype} {x.device.type}, {torch.get_num_threads()} threads"
    )


def _name(option: Option) -> str:
    return repr(option.structure) if option.structure is not None else ""


@torch.inference_mode()
def _in_turns(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each call, all of them run in turns of some milliseconds."""
    loops, times = {}, dict[str, list[float]]()
    for name, call in calls.items():
        for _ in range(3):
            call()
        _wait()
        start = time.perf_counter()
        call()
        _wait()
        loops[name] = max(1, int(_TURN / max(time.perf_counter() - start, 1e-7)))
        times[name] = []
    end = time.perf_counter() + _SECONDS
    for done in range(_TURNS):
        for name, call in calls.items():
            times[name].append(1e3 * _seconds(call, loops[name]) / loops[name])
        if done >= 2 and time.perf_counter() > end:
            break
    return {name: median(found) for name, found in times.items()}


def _seconds(call: Callable[[], object], loops: int) -> float:
    """Time of so many calls. With several threads an operator of PyTorch's own runs before each, untimed: in
    a model a layer finds the cores as such an operator leaves them."""
    entries = torch.ones(_SHARED) if torch.get_num_threads() > 1 else None
    taken = 0.0
    for _ in range(loops):
        if entries is not None:
            entries.relu_()
        start = time.perf_counter()
        call()
        _wait()
        taken += time.perf_counter() - start
    return taken


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def refuse_slower(found: Sequence[SiteOptions]) -> None:
    """Refuse options that are slower than the dense layer on this machine."""
    for site in found:
        dense = site.options[0].latency
        for option in site.options[1:]:
            if dense is not None and option.latency is not None and option.latency >= dense:
                option.refused = f"slower here: {option.latency:.3g} ms against {dense:.3g} ms"
