"""Rewrite a module's forward so that a region of it calls a child instead; the module keeps its class."""

import importlib
import inspect
import linecache
import types
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn

from ksurgeon.errors import SurgeryError
from ksurgeon.find.finder import find_matches
from ksurgeon.find.match import Match
from ksurgeon.find.movement import is_constant, kept_constants
from ksurgeon.find.recording import Call
from ksurgeon.find.tracer import Trace, TraceFailure, trace_module

__all__ = ["Code", "base_class", "is_rewritten", "rewritten_class", "subclass"]

_numbers = count()


@dataclass(frozen=True)
class Code:
    """Source of a forward, and the names it uses; a module among those is kept by its name."""

    source: str
    names: tuple[tuple[str, Any], ...]
    modules: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, graph: fx.Graph) -> "Code":
        """Code of a traced forward."""
        code = graph.python_code("self")
        modules = {name: v.__name__ for name, v in code.globals.items() if isinstance(v, types.ModuleType)}
        names = {name: v for name, v in code.globals.items() if name not in modules}
        return cls(code.src, tuple(names.items()), tuple(modules.items()))

    def forward(self, class_name: str) -> types.FunctionType:
        """The function, with its source where tracebacks find it."""
        scope = dict(self.names) | {name: importlib.import_module(path) for name, path in self.modules}
        file = f"<ksurgeon {class_name}.forward {next(_numbers)}>"
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(True), file)
        exec(compile(self.source, file, "exec"), scope)
        function: types.FunctionType = scope["forward"]
        return function


def is_rewritten(module: nn.Module) -> bool:
    """Whether the module's forward was rewritten by ``rewritten_class``."""
    return hasattr(type(module), "_ksurgeon_base")


def base_class(module: nn.Module) -> type[nn.Module]:
    """The class that the module had before its forward was rewritten."""
    cls = type(module)
    while "_ksurgeon_below" in vars(cls):  # parameters that it computes
        cls = cls._ksurgeon_below  # type: ignore[attr-defined]
    base: type[nn.Module] = getattr(cls, "_ksurgeon_base", cls)
    return base


def rewritten_class(
    module: nn.Module, call: Call, movers: set[str], wanted: list[tuple[Match, str]]
) -> type[nn.Module]:
    """A subclass of the module's class whose forward calls children in place of maps in it.

    What the forward read from the module while it was traced, numbers and flags other than ``training``,
    stays as it was then.

    Args:
        module: the owner of the maps; it is not changed.
        call: how it was called in the example run.
        movers: paths of its children that only move data.
        wanted: maps found in its forward, and the name of the child that takes the place of each.

    Raises:
        SurgeryError: the forward cannot be rewritten; the message says why.
    """
    codes = []
    training = {below: below.training for below in module.modules()}
    for mode in (False, True):
        for below in training:
            below.training = mode
        try:
            with torch.no_grad():  # as the finder traced
                codes.append(_rewrite(module, call, movers, wanted))
        finally:
            for below, flag in training.items():
                below.training = flag
    evaluation, train = codes
    return subclass(base_class(module), evaluation, None if train.source == evaluation.source else train)


def _rewrite(module: nn.Module, call: Call, movers: set[str], wanted: list[tuple[Match, str]]) -> Code:
    try:
        trace = trace_module(module, call)
    except TraceFailure as failure:
        raise SurgeryError(f"the forward of {type(module).__name__} does not trace: {failure}") from failure
    if trace.contexts:
        raise SurgeryError(
            f"the forward of {type(module).__name__} enters contexts ({', '.join(trace.contexts)}), which a "
            "rewritten one would not"
        )
    if trace.writes:
        raise SurgeryError(
            f"the forward of {type(module).__name__} changes attributes ({', '.join(trace.writes)}), which a "
            "rewritten one would not"
        )
    present = {match.region.sink.name: match for match in find_matches(module, trace, movers)}
    for match, child in wanted:
        here = present.get(match.region.sink.name)
        if here is None or not here.same_map(match):
            raise SurgeryError(
                f"the forward of {type(module).__name__} does something else in training "
                f"({match.region.sink.name})"
            )
        _replace(trace, here, child)
    if kept_constants(trace):
        raise SurgeryError(
            f"the forward of {type(module).__name__} makes tensors that cannot be kept as code"
        )
    trace.graph.lint()
    return Code.of(trace.graph)


def _replace(trace: Trace, match: Match, child: str) -> None:
    region = match.region
    with trace.graph.inserting_after(region.sink):
        call = trace.graph.create_node("call_module", child, (region.source,))
    call.meta["value"] = region.sink.meta["value"]
    region.sink.replace_all_uses_with(call)
    _erase_unused(trace.graph, region.nodes)


def _erase_unused(graph: fx.Graph, nodes: list[fx.Node]) -> None:
    """Erase nodes that nobody needs any more, guards on them, and the sizes computed for or from them.

    A node whose shape is read elsewhere stays.
    """
    around = set(nodes)
    for node in graph.nodes:  # what reads sizes of the nodes, and guards on those
        if around.intersection(node.all_input_nodes) and _computes_size(node):
            around.add(node)
    for node in reversed(graph.nodes):
        if node in around and not node.users:
            around.update(n for n in node.all_input_nodes if _computes_size(n) or is_constant(n))
            graph.erase_node(node)


def _computes_size(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and not isinstance(node.meta.get("value"), Tensor)


def subclass(base: type[nn.Module], evaluation: Code, train: Code | None) -> type[nn.Module]:
    """A subclass with the forward given, and with another one for training where there is one."""
    evaluate = evaluation.forward(base.__name__)
    space: dict[str, Any] = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "__reduce_ex__": _reduce,
        "_ksurgeon_base": base,
        "_ksurgeon_codes": (evaluation, train),
        "forward": evaluate,
    }
    if train is not None:
        space["_ksurgeon_evaluate"], space["_ksurgeon_train"] = evaluate, train.forward(base.__name__)
        space["forward"] = _forward_by_mode
    new = type(base.__name__, (base,), space)
    new.__qualname__ = base.__qualname__
    if train is not None:
        new.forward = types.FunctionType(  # type: ignore[attr-defined]
            _forward_by_mode.__code__, _forward_by_mode.__globals__, "forward"
        )
    new.forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]
    return new


def _forward_by_mode(self: Any, *args: Any, **kwargs: Any) -> Any:
    if self.training:
        return self._ksurgeon_train(*args, **kwargs)
    return self._ksurgeon_evaluate(*args, **kwargs)


def _reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    cls = type(self)
    return _restore, (cls._ksurgeon_base, cls._ksurgeon_codes), vars(self).copy()  # type: ignore[attr-defined]


def _restore(base: type[nn.Module], codes: tuple[Code, Code | None]) -> nn.Module:
    cls = subclass(base, *codes)
    return cls.__new__(cls)
