"""An FX tracer for one module at a time that knows every value's shape while it traces.

Children are leaves; what they return is known from a recorded run. Each node is evaluated on fake tensors
as it is made, so that ``len``, iteration and conditions on shapes have an answer, while sizes stay nodes of
the graph: the traced forward still takes any batch.
"""

import inspect
import operator
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from ksurgeon.find.attributes import Attributes
from ksurgeon.find.guards import known_object, require_length, require_names
from ksurgeon.find.patching import following, patch_globals, patched
from ksurgeon.find.proxies import TraceFailure, ValueTracer
from ksurgeon.find.recording import Call, TensorSpec
from ksurgeon.torch_private import FakeTensorMode, pytree

__all__ = ["ModuleTracer", "Trace", "TraceFailure", "attribute_of", "trace_module"]

_CONSTANT = (type(None), bool, str)
_CONSTANTS_OF_FX = (Tensor, torch.ScriptObject, pytree.TreeSpec)
_STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


@dataclass
class Trace:
    """A module's forward as a graph; ``node.meta["value"]`` is the fake value of every node.

    Attributes:
        graph: the forward, children as leaves.
        fixed: names of the nodes whose number was needed as a plain Python number, so that the graph holds
            only for inputs where it is the same.
        constants: tensors that the forward made or took from elsewhere, by the name under which the graph
            reads them from the module.
        writes: names of the attributes that the forward changes, which the graph does not.
        contexts: names of the contexts that the forward enters (autocast, no_grad), which the graph does not.
        decided: names of the tensors whose entries decided what the forward does, so that the graph holds
            for those entries only.
        real: whether the entries of the tensors were needed to trace at all.
    """

    graph: fx.Graph
    fixed: list[str]
    constants: dict[str, Any]
    writes: list[str]
    contexts: list[str]
    decided: list[str]
    real: bool


class ModuleTracer(ValueTracer):
    """Traces one call of a module's forward; see ``trace_module``."""

    proxy_buffer_attributes = True

    def __init__(self, module: nn.Module, call: Call) -> None:
        super().__init__(call.real)
        self.call = call
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.outputs: dict[int, list[Any]] = defaultdict(list)
        for child, child_call in call.children:
            self.outputs[child].append(child_call.output)
        self.module, self.below = module, {id(below) for below in module.modules()}
        self.objects: dict[str, Any] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if id(m) not in self.below:  # made by the forward itself
            patch_globals(_globals_of(m.forward))
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        node = proxy.node
        self.evaluating += 1
        try:
            node.meta["value"] = value = self._evaluate(node)
        finally:
            self.evaluating -= 1
        told = kind in ("placeholder", "call_module") or target is operator.getitem
        if isinstance(value, _CONSTANT) and (told or (kind == "call_method" and type(value) is not bool)):
            self.guard(proxy, value)
            return value
        return proxy

    def trace(self, root: nn.Module, concrete_args: Any = None) -> fx.Graph:  # type: ignore[override]
        """As in FX, which would patch ``nn.Module`` for all threads, and anew for every module."""
        forward = type(root).forward
        self.root, self.root_module_name = root, root._get_name()
        self.submodule_paths = {below: path for path, below in root.named_modules()}
        self.tensor_attrs = {
            value: f"{path}.{name}" if path else name
            for below, path in self.submodule_paths.items()
            for name, value in vars(below).items()
            if isinstance(value, _CONSTANTS_OF_FX)
        }
        self.graph = fx.Graph(tracer_cls=type(self))
        patch_globals(_globals_of(forward))
        with _seen_by_dynamo(), following(self):
            output = self._call_forward()
            returns = inspect.get_annotations(inspect.unwrap(forward)).get("return")
            self.create_node("output", "output", (self.create_arg(output),), {}, type_expr=returns)
        self.submodule_paths = None
        return self.graph

    def _call_forward(self) -> Any:
        signature = inspect.signature(self.module.forward)
        bound = signature.bind(*self.call.args, **self.call.kwargs)
        bound.apply_defaults()
        for name, parameter in signature.parameters.items():
            bound.arguments[name] = self._argument(parameter, bound.arguments[name])
        # What was given by name is given by name again: decorators look for it there.
        kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
        by_place = [name for name, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        by_name = {}
        if inspect.Parameter.VAR_POSITIONAL not in kinds.values():
            by_name = {name: bound.arguments.pop(name) for name in by_place[len(self.call.args) :]}
        return self.module.forward(*bound.args, **bound.kwargs, **by_name)

    def _argument(self, parameter: inspect.Parameter, recorded: Any) -> Any:
        """A placeholder for what was given; those of a ``*`` or ``**`` parameter are taken out of it."""
        self.recorded = recorded
        default = () if parameter.default is parameter.empty else (parameter.default,)
        name = _STARS.get(parameter.kind, "") + parameter.name
        proxy = self.create_proxy("placeholder", name, default, {})
        if parameter.kind is parameter.VAR_POSITIONAL:
            self.create_node("call_function", require_length, (proxy.node, len(recorded)), {})
            return tuple(proxy[index] for index in range(len(recorded)))  # type: ignore[index]
        if parameter.kind is parameter.VAR_KEYWORD:
            self.create_node("call_function", require_names, (proxy.node, *recorded), {})
            return {key: proxy[key] for key in recorded}  # type: ignore[index]
        return proxy

    def create_arg(self, a: Any) -> Any:
        if issubclass(type(a), fx.Proxy):  # isinstance would be told of the value
            return a.node
        if isinstance(a, dict) and is_dataclass(a) and not isinstance(a, type):  # outputs of transformers
            held = {key: self.create_arg(value) for key, value in a.items()}
            node = self.create_node("call_function", type(a), (), held)
            node.meta["value"] = type(a)(**map_aggregate(node.kwargs, self._value))  # type: ignore[arg-type]
            return node
        try:
            return super().create_arg(a)
        except NotImplementedError:
            name = f"{type(a).__name__}_{id(a)}"
            self.objects[name] = a
            node = self.create_node("call_function", known_object, (name,), {})
            node.meta["value"] = a
            return node

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._fake(self.recorded)
        if node.op == "get_attr":
            node.meta["attribute"] = attribute = attribute_of(self.root, str(node.target))
            if not isinstance(attribute, Tensor):
                return attribute
            return attribute.detach().clone() if self.real else self.mode.from_tensor(attribute)
        if node.op == "call_module":
            waiting = self.outputs[id(self.root.get_submodule(str(node.target)))]
            if not waiting:
                raise TraceFailure(f"{node.target} was not called in the example run")
            return self._fake(waiting.pop(0))
        if node.op not in ("call_function", "call_method"):
            return None
        args, kwargs = (map_aggregate(a, self._value) for a in (node.args, node.kwargs))
        with nullcontext() if self.real else self.mode:
            if node.op == "call_method":
                receiver, *others = args  # type: ignore[misc]
                return getattr(receiver, str(node.target))(*others, **kwargs)  # type: ignore[arg-type]
            return node.target(*args, **kwargs)  # type: ignore[operator, misc, arg-type]

    def _value(self, leaf: Any) -> Any:
        if not isinstance(leaf, fx.Node):
            return leaf
        if "value" not in leaf.meta and leaf.op == "get_attr":
            leaf.meta["value"] = self._evaluate(leaf)
        if "value" not in leaf.meta:
            raise TraceFailure(f"the value of {leaf.name} is not known")
        return leaf.meta["value"]

    def faked(self, leaf: Any) -> Any:
        """The fake counterpart of a real tensor; anything else as it is."""
        return self.mode.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf

    def _fake(self, tree: Any) -> Any:
        def fake(leaf: Any) -> Any:
            if not isinstance(leaf, TensorSpec):
                return leaf.clone() if isinstance(leaf, Tensor) else leaf
            with self.mode:
                tensor = torch.empty_strided(leaf.shape, leaf.stride, dtype=leaf.dtype, device=leaf.device)
            tensor._ksurgeon_channel = leaf.channel  # type: ignore[attr-defined]
            return tensor

        return pytree.tree_map(fake, tree)


def attribute_of(module: nn.Module, path: str) -> Any:
    """A parameter, buffer, child or plain attribute, looked up without ``getattr``, which FX patches."""
    attribute: Any = module
    for name in path.split("."):
        stores = (attribute._parameters, attribute._buffers, attribute._modules, attribute.__dict__)
        attribute = next((store[name] for store in stores if name in store), None)
    return attribute


def _globals_of(forward: Any) -> dict[str, Any]:
    return getattr(forward, "__globals__", {})


def _seen_by_dynamo() -> AbstractContextManager[None]:
    """Inside, functions that ``torch.compile`` made raise, where PyTorch can tell them by the thread."""
    context = getattr(fx._symbolic_trace, "_is_fx_tracing_context", None)
    return context(True) if context is not None else nullcontext()


def trace_module(module: nn.Module, call: Call) -> Trace:
    """Trace a module's own forward as it was called, its children left as leaves.

    Arguments that were None, a truth value or a string are taken as constants, and guarded.

    Raises:
        TraceFailure: the forward does not trace; the message says why.
    """
    attributes = Attributes(module)
    try:
        tracer = ModuleTracer(module, call)
        with torch.no_grad(), patched():
            graph = tracer.trace(module)
    except TraceFailure:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise TraceFailure(f"{type(error).__name__}: {lines[0] if lines else 'no message'}") from error
    finally:
        changed = attributes.restore()
    # FX leaves tensors it met as attributes of the module.
    met = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    constants = {name: value for name, value in changed.items() if name in met} | tracer.objects
    writes = [name for name in changed if name not in met]
    if call.real:
        for node in graph.nodes:
            node.meta = {key: map_aggregate(value, tracer.faked) for key, value in node.meta.items()}
    return Trace(graph, tracer.fixed, constants, writes, tracer.contexts, tracer.decided, call.real)
