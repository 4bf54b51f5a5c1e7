"""An FX tracer for one module at a time that knows every value's shape while it traces.

Children are leaves; what they return is known from a recorded run. Each node is evaluated on fake tensors
as it is made, so that ``len``, iteration and conditions on shapes have an answer, while sizes stay nodes of
the graph: the traced forward still takes any batch.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from ksurgeon.find.attributes import Attributes
from ksurgeon.find.guards import known_object, require, require_length, require_names
from ksurgeon.find.patches import noting_contexts, seeing_sizes
from ksurgeon.find.proxies import AttributeProxy, ValueProxy
from ksurgeon.find.recording import Call, TensorSpec

__all__ = ["ModuleTracer", "Trace", "TraceFailure", "attribute_of", "trace_module"]

_CONSTANT = (type(None), bool, str)
_STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


class TraceFailure(Exception):
    """A module's forward that could not be traced; the message says why."""


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
    """

    def __init__(
        self,
        graph: fx.Graph,
        fixed: list[str],
        constants: dict[str, Any],
        writes: list[str],
        contexts: list[str],
    ) -> None:
        self.graph, self.fixed, self.constants, self.writes = graph, fixed, constants, writes
        self.contexts = contexts


class ModuleTracer(fx.Tracer):
    """Traces one call of a module's forward; see ``trace_module``."""

    proxy_buffer_attributes = True

    def __init__(self, module: nn.Module, call: Call) -> None:
        super().__init__()
        self.call = call
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.outputs: dict[int, list[Any]] = defaultdict(list)
        for child, child_call in call.children:
            self.outputs[child].append(child_call.output)
        self.fixed: list[str] = []
        self.module, self.below = module, {id(below) for below in module.modules()}
        self.objects: dict[str, Any] = {}
        self.contexts: list[str] = []
        self.evaluating = 0

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if id(m) not in self.below:  # made by the forward itself
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ValueProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        node = proxy.node
        self.evaluating += 1
        try:
            node.meta["value"] = value = self._evaluate(node)
        finally:
            self.evaluating -= 1
        if kind == "placeholder" and isinstance(value, _CONSTANT):
            self.create_node("call_function", require, (node, value), {})
            return value
        return proxy

    def create_args_for_root(self, *_: Any) -> tuple[Callable[[], Any], list[Any]]:
        """The forward is called as it was in the example run, decorators and all."""
        return self._call_forward, []

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
            return tuple(self._item(proxy, index) for index in range(len(recorded)))
        if parameter.kind is parameter.VAR_KEYWORD:
            self.create_node("call_function", require_names, (proxy.node, *recorded), {})
            return {key: self._item(proxy, key) for key in recorded}
        return proxy

    def _item(self, proxy: fx.Proxy, key: int | str) -> Any:
        item = proxy[key]  # type: ignore[index]
        value = self.value_of(item)
        if isinstance(value, _CONSTANT):
            self.create_node("call_function", require, (item.node, value), {})
            return value
        return item

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

    def known(self, proxy: fx.Proxy) -> Any:
        """The value of a proxy, without making a node of an attribute."""
        if type(proxy) is AttributeProxy and proxy._node is None:
            return getattr(self.known(proxy.root), proxy.attr)
        return proxy.node.meta.get("value")

    def value_of(self, proxy: fx.Proxy) -> Any:
        if "value" not in proxy.node.meta:
            raise TraceFailure(f"the value of {proxy.node.name} is not known")
        return proxy.node.meta["value"]

    def fix(self, proxy: fx.Proxy, freely: bool = False) -> Any:
        """The plain value of a proxy, guarded; ``freely`` where it depends on no size."""
        value = self.value_of(proxy)
        if isinstance(value, Tensor):
            raise TraceFailure(f"the forward depends on what is in the tensor {proxy.node.name}")
        if not freely:
            self.fixed.append(proxy.node.name)
        self.create_node("call_function", require, (proxy.node, value), {})
        return value

    def length(self, proxy: fx.Proxy) -> int:
        """Length of a value, guarded unless it is the number of dimensions of a shape."""
        value = self.value_of(proxy)
        if not isinstance(value, torch.Size):
            self.create_node("call_function", require_length, (proxy.node, len(value)), {})
        return len(value)

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.value_of(obj)
        if isinstance(value, Tensor):
            raise TraceFailure(f"the forward depends on what is in the tensor {obj.node.name}")
        answer = bool(value)
        if isinstance(value, bool) and obj.node.op == "call_function":
            self.create_node("call_function", require, (obj.node, value), {})
        return answer

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        value = self.value_of(obj)
        if isinstance(value, Mapping):
            return iter(self.keys(obj))
        if isinstance(value, (KeysView, ValuesView, ItemsView)):
            obj = self.create_proxy("call_function", list, (obj,), {})
        return iter([obj[index] for index in range(self.length(obj))])  # type: ignore[index]

    def keys(self, obj: fx.Proxy) -> Any:
        return list(self.value_of(obj).keys())

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._fake(self.recorded)
        if node.op == "get_attr":
            node.meta["attribute"] = attribute = attribute_of(self.root, str(node.target))
            return self.mode.from_tensor(attribute) if isinstance(attribute, Tensor) else attribute
        if node.op == "call_module":
            waiting = self.outputs[id(self.root.get_submodule(str(node.target)))]
            if not waiting:
                raise TraceFailure(f"{node.target} was not called in the example run")
            return self._fake(waiting.pop(0))
        if node.op not in ("call_function", "call_method"):
            return None
        args, kwargs = (map_aggregate(a, self._value) for a in (node.args, node.kwargs))
        with self.mode:
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

    def _fake(self, tree: Any) -> Any:
        def fake(leaf: Any) -> Any:
            if not isinstance(leaf, TensorSpec):
                return leaf
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


def trace_module(module: nn.Module, call: Call) -> Trace:
    """Trace a module's own forward as it was called, its children left as leaves.

    Arguments that were None, a truth value or a string are taken as constants, and guarded.

    Raises:
        TraceFailure: the forward does not trace; the message says why.
    """
    attributes = Attributes(module)
    try:
        tracer = ModuleTracer(module, call)
        with torch.no_grad(), seeing_sizes(), noting_contexts(tracer):
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
    return Trace(graph, tracer.fixed, constants, writes, tracer.contexts)
