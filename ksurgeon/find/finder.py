"""Run once, trace module by module, recognise."""

import warnings

from torch import nn

from ksurgeon.errors import InputError
from ksurgeon.find.inputs import ExampleInputs, evaluating
from ksurgeon.find.layers import find_layers
from ksurgeon.find.movement import as_function, is_movement_module
from ksurgeon.find.recording import Call, Recording, record_run
from ksurgeon.find.shuffles import Shuffle, find_shuffles, only_moves
from ksurgeon.find.site import Site
from ksurgeon.find.tracer import Trace, TraceFailure, trace_module

__all__ = ["Finder", "find", "open_finder"]


class Finder:
    """What one run of a model and a trace of each of its modules told.

    Attributes:
        example_inputs: what the model was run on; None if it was not.
        sites: all sites, layers and shuffles, in the order of the model's modules.
        traces: the trace of every module that was traced, by path.
        failures: why a module could not be traced, by path.
        shuffles: the shuffles found inside each forward, by the path of their site.
    """

    def __init__(self, model: nn.Module, example_inputs: ExampleInputs | None = None) -> None:
        self.model, self.example_inputs = model, example_inputs
        self.traces: dict[str, Trace] = {}
        self.failures: dict[str, str] = {}
        self.shuffles: dict[str, Shuffle] = {}
        self.recording: Recording | None = None
        self._movers: set[int] = set()
        if example_inputs is not None:
            self.recording = record_run(model, example_inputs)
        shuffles = self._find_shuffles() if self.recording else []
        layers = find_layers(model, self.recording)
        order = {path: position for position, (path, _) in enumerate(model.named_modules())}
        self.sites = sorted(layers + shuffles, key=lambda site: order[site.owner])

    def call_of(self, module: nn.Module) -> Call:
        """The module's first call in the example run."""
        assert self.recording is not None
        return self.recording.first[id(module)]

    def movers_of(self, module: nn.Module) -> set[str]:
        """Paths, from the module, of those below it that only move data."""
        return {path for path, child in module.named_modules() if path and id(child) in self._movers}

    def _find_shuffles(self) -> list[Site]:
        sites: list[Site] = []
        # Children before parents, so that a parent knows which children only move data.
        with evaluating(self.model):
            for path, module in reversed(list(self.model.named_modules())):
                sites += reversed(self._shuffles_of(path, module))
        return sites[::-1]

    def _shuffles_of(self, path: str, module: nn.Module) -> list[Site]:
        assert self.recording is not None
        call = self.recording.first.get(id(module))
        builtin = type(module).__module__.startswith(("torch.nn.modules", "einops.layers"))
        if call is None or (builtin and not is_movement_module(module) and type(module) is not nn.Sequential):
            return []
        if is_movement_module(module):
            self._movers.add(id(module))
        try:
            trace = trace_module(as_function(module), call)
        except TraceFailure as failure:
            self.failures[path] = str(failure)
            return []
        self.traces[path] = trace
        movers = self.movers_of(module)
        if only_moves(trace, movers):
            self._movers.add(id(module))
        return [self._site(path, module, trace, shuffle) for shuffle in find_shuffles(module, trace, movers)]

    def _site(self, path: str, module: nn.Module, trace: Trace, shuffle: Shuffle) -> Site:
        region, value = shuffle.region, shuffle.region.source.meta["value"]
        whole = bool(path) and _is_whole(trace, shuffle)
        site_path = path if whole else f"{path}:{region.sink.name}"
        self.shuffles[site_path] = shuffle
        reason = None
        if trace.fixed and not whole and type(module) is not nn.Sequential:
            reason = f"its forward fixes sizes to plain numbers ({', '.join(dict.fromkeys(trace.fixed))})"
        elif trace.constants and not whole and type(module) is not nn.Sequential:
            reason = "its forward makes tensors, which a rewritten one could not keep"
        elif trace.writes and not whole and type(module) is not nn.Sequential:
            reason = f"its forward changes attributes ({', '.join(trace.writes)})"
        return Site(
            kind="channel_shuffle",
            path=site_path,
            owner=path,
            in_features=len(shuffle.permutation),
            out_features=len(shuffle.permutation),
            reason=reason,
            class_name=type(module).__name__,
            dim=shuffle.dim,
            ndim=value.dim(),
            permutation=shuffle.permutation,
            groups=shuffle.groups,
            vectors=value.numel() // len(shuffle.permutation) // value.shape[0],
            nodes=() if whole else tuple(node.name for node in region.nodes),
        )


def _is_whole(trace: Trace, shuffle: Shuffle) -> bool:
    """Whether the module takes one tensor, shuffles it, returns it, and does nothing else."""
    region = shuffle.region
    output = next(node for node in trace.graph.nodes if node.op == "output")
    placeholders = [node for node in trace.graph.nodes if node.op == "placeholder"]
    return placeholders == [region.source] and output.args[0] is region.sink


def open_finder(model: nn.Module, example_inputs: ExampleInputs | None = None) -> Finder:
    """Look at a model with the inputs given, or with guessed ones; without any that fit, at its layers only.

    Raises:
        InputError: the model does not run on the inputs given.
    """
    if example_inputs is not None:
        return Finder(model, example_inputs)
    from ksurgeon.models.inputs import inputs_for

    try:
        return Finder(model, inputs_for(model))
    except InputError as error:
        warnings.warn(
            "no example_inputs given, and none that fit could be guessed: only layers are looked at, no map "
            f"inside a forward such as a channel shuffle ({error})",
            stacklevel=3,
        )
        return Finder(model)


def find(model: nn.Module, example_inputs: ExampleInputs | None = None) -> list[Site]:
    """Find the linear maps in a model; the model is not changed.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments that the model
            takes. They are needed to find maps inside a ``forward`` (channel shuffles), and to count
            vectors. Left out, they are guessed: for models of timm, torchvision and transformers from what
            these tell, for others from the first layer.

    Returns:
        One site for every map found, also for those that cannot be replaced (``site.reason`` says why).

    Raises:
        InputError: the model does not run on the inputs given.
    """
    return open_finder(model, example_inputs).sites
