"""Run once, trace module by module, recognise."""

import warnings
from collections.abc import Collection
from functools import cached_property

import torch
from torch import fx, nn

from ksurgeon.errors import InputError
from ksurgeon.find.inputs import ExampleInputs
from ksurgeon.find.insertions import find_insertions
from ksurgeon.find.layers import find_layers, held_outside, is_graph_module, is_uninitialised, kept_outside
from ksurgeon.find.match import Match
from ksurgeon.find.movement import as_function, is_movement_module, kept_constants
from ksurgeon.find.patching import one_at_a_time, patched
from ksurgeon.find.recording import Call, Recording, record_run, record_values
from ksurgeon.find.shuffles import only_moves
from ksurgeon.find.site import Site
from ksurgeon.find.tracer import Trace, TraceFailure, trace_module
from ksurgeon.find.unchanged import example_run
from ksurgeon.site_kinds import SiteKind, site_kinds

__all__ = ["Finder", "find", "find_matches", "open_finder"]


class Finder:
    """What one run of a model and a trace of each of its modules told.

    Args:
        kinds: names of the kinds of site that are wanted, all if left out. Forwards are traced where one of
            these may be inside.

    Attributes:
        example_inputs: what the model was run on; None if it was not.
        sites: all sites, layers and maps inside a forward, in the order of the model's modules.
        traces: the trace of every module that was traced, by path.
        failures: why a module could not be traced, by path.
        matches: the maps found inside each forward, by the path of their site.
        insertions: sites where a map could be inserted, along each dimension; there are many.
        outside: what ``held_outside`` tells of the model.

    Raises:
        InputError: the model does not run on the inputs, or ``torch.jit`` compiled it.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: ExampleInputs | None = None,
        kinds: Collection[str] | None = None,
    ) -> None:
        if isinstance(model, torch.jit.ScriptModule):
            raise InputError(
                f"the model was compiled by torch.jit ({model.original_name}), and has no Python code to "
                "look into; give the model from before torch.jit.script or torch.jit.trace"
            )
        self.model, self.example_inputs = model, example_inputs
        self._traces = any(
            type(kind).matches is not SiteKind.matches and not kind.inserts
            for kind in site_kinds()
            if kinds is None or kind.name in kinds
        )
        self.traces: dict[str, Trace] = {}
        self.failures: dict[str, str] = {}
        self.matches: dict[str, Match] = {}
        self.recording: Recording | None = None
        self._movers: set[int] = set()
        if example_inputs is not None and is_uninitialised(model):
            warnings.warn(
                "the model has parameters that its first run would initialise, and is not run: only layers "
                "are looked at; run it once first",
                stacklevel=4,
            )
            self.example_inputs = example_inputs = None
        with one_at_a_time():
            self.sites = self._look(example_inputs)

    def _look(self, example_inputs: ExampleInputs | None) -> list[Site]:
        model = self.model
        self.outside = held_outside(model)
        if example_inputs is not None:
            self.recording = record_run(model, example_inputs)
        inside = self._find_inside() if self.recording and self._traces else []
        sites = find_layers(model, self.recording) + inside
        for kind in site_kinds():
            sites = kind.gather(self, sites)
        order = {path: position for position, (path, _) in enumerate(model.named_modules())}
        return sorted(sites, key=lambda site: (order[site.owner], bool(site.nodes)))

    @cached_property
    def insertions(self) -> list[Site]:
        return find_insertions(self.model, self.recording)

    @property
    def all_sites(self) -> list[Site]:
        """``sites`` and ``insertions``."""
        return [*self.sites, *self.insertions]

    def call_of(self, module: nn.Module) -> Call:
        """The module's first call in the example run."""
        assert self.recording is not None
        return self.recording.first[id(module)]

    def movers_of(self, module: nn.Module) -> set[str]:
        """Paths, from the module, of those below it that only move data."""
        return {path for path, child in module.named_modules() if path and id(child) in self._movers}

    def _find_inside(self) -> list[Site]:
        assert self.recording is not None
        # Children before parents, so that a parent knows which children only move data.
        modules = list(self.model.named_modules())[::-1]
        sites = self._inside_of(modules, self.recording.first)
        # What depends on more than shapes is traced with the values themselves.
        failed = {id(module) for path, module in modules if path in self.failures}
        values = record_values(self.model, self.recording, failed) if failed else {}
        return sites + self._inside_of(modules, values)

    def _inside_of(self, modules: list[tuple[str, nn.Module]], calls: dict[int, Call]) -> list[Site]:
        """The sites in the forwards of those modules that have a call."""
        with example_run(self.model):
            with patched():
                traces = [
                    (path, module, trace)
                    for path, module in modules
                    if id(module) in calls and (trace := self._trace(path, module, calls[id(module)]))
                ]
            return [site for found in traces for site in self._recognised(*found)]

    def _trace(self, path: str, module: nn.Module, call: Call) -> Trace | None:
        builtin = type(module).__module__.startswith(("torch.nn.modules", "einops.layers"))
        if builtin and not is_movement_module(module) and type(module) is not nn.Sequential:
            return None
        if is_movement_module(module):
            self._movers.add(id(module))
        try:
            trace = trace_module(as_function(module), call)
        except TraceFailure as failure:
            self.failures[path] = str(failure)
            return None
        self.traces[path] = trace
        self.failures.pop(path, None)
        return trace

    def _recognised(self, path: str, module: nn.Module, trace: Trace) -> list[Site]:
        movers = self.movers_of(module)
        if only_moves(trace, movers):
            self._movers.add(id(module))
        matches = find_matches(module, trace, movers)
        varied = bool(matches) and not trace.real and self._varies(module, trace)
        gone = {node for match in matches for node in match.region.nodes}
        obstacle = is_graph_module(module) or _cannot_rewrite(trace, gone, varied)
        return [self._site(path, module, trace, match, obstacle) for match in matches]

    def _varies(self, module: nn.Module, trace: Trace) -> bool:
        """Whether the forward does something else in another call of the example run."""
        assert self.recording is not None
        if id(module) in self.recording.unknown:
            return True
        calls = self.recording.others[id(module)]
        if not calls:
            return False
        try:
            with patched():
                others = [trace_module(as_function(module), call) for call in calls]
        except TraceFailure:
            return True
        return len({other.graph.python_code("self").src for other in (trace, *others)}) > 1

    def _site(self, path: str, module: nn.Module, trace: Trace, match: Match, obstacle: str | None) -> Site:
        region, value = match.region, match.region.source.meta["value"]
        whole = bool(path) and _is_whole(trace, match)
        site_path = path if whole else f"{path}:{region.sink.name}"
        self.matches[site_path] = match
        rewritten = not whole and type(module) is not nn.Sequential
        if not rewritten:
            obstacle = kept_outside(module, self.outside) if whole else None
        return Site(
            kind=match.kind,
            path=site_path,
            owner=path,
            in_features=match.in_features,
            out_features=match.out_features,
            reason=match.reason or obstacle,
            class_name=type(module).__name__,
            dim=match.dim,
            ndim=value.dim(),
            permutation=match.permutation,
            groups=match.groups,
            facts=dict(match.facts),
            vectors=value.numel() // match.in_features // value.shape[0] if value.dim() > 1 else 1,
            nodes=() if whole else tuple(node.name for node in region.nodes),
        )


def find_matches(module: nn.Module, trace: Trace, movers: set[str]) -> list[Match]:
    """Maps in a traced forward in the order they run; of two that share a node, that of the later kind."""
    order = {node: position for position, node in enumerate(trace.graph.nodes)}
    taken: set[fx.Node] = set()
    matches = []
    for kind in site_kinds()[::-1]:
        for match in kind.matches(module, trace, movers):
            if taken.isdisjoint(match.region.nodes):
                taken.update(match.region.nodes)
                matches.append(match)
    return sorted(matches, key=lambda match: order[match.region.sink])


def _cannot_rewrite(trace: Trace, gone: set[fx.Node], varied: bool) -> str | None:
    """Why the forward cannot be rewritten once the nodes in ``gone`` have been replaced."""
    if trace.decided:
        return f"its forward depends on what is in tensors ({', '.join(dict.fromkeys(trace.decided))})"
    if trace.real:
        return "its forward can be followed only where the values of its tensors are known"
    if varied:
        return "it is called several times, and its forward does something else with other arguments"
    if trace.fixed:
        return f"its forward fixes sizes to plain numbers ({', '.join(dict.fromkeys(trace.fixed))})"
    if kept_constants(trace, gone):
        return "its forward makes tensors, which a rewritten one could not keep"
    if trace.contexts:
        return f"its forward enters contexts ({', '.join(dict.fromkeys(trace.contexts))})"
    if trace.writes:
        return f"its forward changes attributes ({', '.join(trace.writes)})"
    return None


def _is_whole(trace: Trace, match: Match) -> bool:
    """Whether the module takes one tensor, maps it, returns it, and does nothing else."""
    region = match.region
    output = next(node for node in trace.graph.nodes if node.op == "output")
    placeholders = [node for node in trace.graph.nodes if node.op == "placeholder"]
    return placeholders == [region.source] and output.args[0] is region.sink


def open_finder(
    model: nn.Module, example_inputs: ExampleInputs | None = None, kinds: Collection[str] | None = None
) -> Finder:
    """Look at a model with the inputs given, or with guessed ones; without any that fit, at its layers only.

    ``kinds`` are those of ``Finder``.

    Raises:
        InputError: the model does not run on the inputs given.
    """
    if example_inputs is not None:
        return Finder(model, example_inputs, kinds)
    from ksurgeon.models.inputs import inputs_for

    try:
        return Finder(model, inputs_for(model), kinds)
    except InputError as error:
        warnings.warn(
            "no example_inputs given, and none that fit could be guessed: only layers are looked at, no map "
            f"inside a forward such as a channel shuffle ({error})",
            stacklevel=3,
        )
        return Finder(model)


def find(
    model: nn.Module, example_inputs: ExampleInputs | None = None, *, insertions: bool = False
) -> list[Site]:
    """Find the linear maps in a model; the model is not changed.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments that the model
            takes. They are needed to find maps inside a ``forward`` (channel shuffles), and to count
            vectors. Left out, they are guessed: for models of timm, torchvision and transformers from what
            these tell, for others from the first layer.
        insertions: whether to tell, too, where a map could be inserted: before and after every module, along
            every dimension.

    Returns:
        One site for every map found, also for those that cannot be replaced (``site.reason`` says why).

    Raises:
        InputError: the model does not run on the inputs given, or ``torch.jit`` compiled it.
    """
    finder = open_finder(model, example_inputs)
    return finder.all_sites if insertions else finder.sites
