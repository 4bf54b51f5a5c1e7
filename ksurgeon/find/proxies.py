"""Values of a traced forward that answer, as the real ones would, what the forward asks of them."""

import operator
import threading
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from torch import Size, Tensor, fx

from ksurgeon.find.guards import require, require_length

__all__ = ["AttributeProxy", "TraceFailure", "ValueProxy", "ValueTracer", "current"]


class TraceFailure(Exception):
    """A module's forward that could not be traced; the message says why."""


class ValueTracer(fx.Tracer):
    """A tracer that knows the value of every node, ``node.meta["value"]``, and guards what is told of it.

    Attributes:
        real: whether the values hold the entries of the example run, and not their shapes alone.
        fixed: names of the nodes whose number was needed as a plain Python number.
        decided: names of the tensors whose entries decided something; only where they are real.
        contexts: names of the contexts that the forward entered.
        parameters: proxies of the parameters and buffers that were read, by name.
        evaluating: above zero while a node's value is computed.
    """

    def __init__(self, real: bool) -> None:
        super().__init__()
        self.real = real
        self.fixed: list[str] = []
        self.decided: list[str] = []
        self.contexts: list[str] = []
        self.parameters: dict[str, fx.Proxy] = {}
        self.evaluating = 0

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ValueProxy(node, self)

    def known(self, proxy: fx.Proxy) -> Any:
        """The value of a proxy, without making a node of an attribute."""
        if type(proxy) is AttributeProxy and proxy._node is None:
            return getattr(self.known(proxy.root), proxy.attr)
        return proxy.node.meta.get("value")

    def value_of(self, proxy: fx.Proxy) -> Any:
        """The value of a proxy.

        Raises:
            TraceFailure: it is not known.
        """
        if "value" not in proxy.node.meta:
            raise TraceFailure(f"the value of {proxy.node.name} is not known")
        return proxy.node.meta["value"]

    def guard(self, proxy: fx.Proxy, value: Any) -> None:
        """Demand that a plain value comes out the same in every run of the graph."""
        self.create_node("call_function", require, (proxy.node, value), {})

    def fix(self, proxy: fx.Proxy, freely: bool = False) -> Any:
        """The plain value of a proxy, guarded; ``freely`` where it depends on no size."""
        value = self.value_of(proxy)
        if isinstance(value, Tensor):
            self._decide(proxy)
            return value
        if not freely:
            self.fixed.append(proxy.node.name)
        self.guard(proxy, value)
        return value

    def length(self, proxy: fx.Proxy) -> int:
        """Length of a value, guarded unless it is the number of dimensions of a shape."""
        value = self.value_of(proxy)
        if not isinstance(value, Size):
            self.create_node("call_function", require_length, (proxy.node, len(value)), {})
        return len(value)

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.value_of(obj)
        if isinstance(value, Tensor):
            self._decide(obj)
        elif isinstance(value, bool) and obj.node.op == "call_function":
            self.guard(obj, value)
        return bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        value = self.value_of(obj)
        if isinstance(value, Mapping):
            return iter(self.keys(obj))
        if isinstance(value, (KeysView, ValuesView, ItemsView)):
            obj = self.create_proxy("call_function", list, (obj,), {})
        return iter([obj[index] for index in range(self.length(obj))])  # type: ignore[index]

    def keys(self, obj: fx.Proxy) -> Any:
        return list(self.value_of(obj).keys())

    def _decide(self, proxy: fx.Proxy) -> None:
        if not self.real:
            raise TraceFailure(f"the forward depends on what is in the tensor {proxy.node.name}")
        self.decided.append(proxy.node.name)


class ValueProxy(fx.Proxy):
    """A value that is known; what is asked of it as a plain number or truth is guarded."""

    tracer: ValueTracer

    def __getattr__(self, name: str) -> Any:
        value = self.tracer.known(self)
        if value is not None and not hasattr(value, name):
            raise AttributeError(f"'{type(value).__name__}' object has no attribute '{name}'")
        attribute = AttributeProxy(self, name)
        if value is not None and isinstance(getattr(value, name), (str, type(None))):  # the type of a device
            return self.tracer.fix(attribute, freely=True)
        return attribute

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not args and not kwargs and not callable(self.tracer.known(self)):
            return self  # every proxy looks callable
        return super().__call__(*args, **kwargs)

    @property
    def keys(self) -> Any:  # type: ignore[override]
        """The method of a mapping; of anything else what its attribute ``keys`` is."""
        if isinstance(self.tracer.known(self), Mapping):
            return lambda: self.tracer.keys(self)
        return AttributeProxy(self, "keys")

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What ``isinstance`` is told. Never that it is a tensor: PyTorch would take it for one in C++."""
        value = self.tracer.known(self)
        return type(self) if value is None or isinstance(value, Tensor) else type(value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __len__(self) -> int:
        return self.tracer.length(self)

    def __int__(self) -> int:
        return int(self.tracer.fix(self))

    def __index__(self) -> int:
        index: int = self.tracer.fix(self).__index__()
        return index

    def __float__(self) -> float:
        return float(self.tracer.fix(self))

    def __round__(self, digits: int | None = None) -> int | float:
        rounded: int | float = round(self.tracer.fix(self), digits)
        return rounded

    def __hash__(self) -> int:
        """That of a plain number, so that it finds what a dictionary holds under it."""
        value = self.tracer.known(self)
        return hash(self.tracer.fix(self)) if isinstance(value, (int, float)) else object.__hash__(self)

    def __contains__(self, item: object) -> bool:
        return item in self.tracer.value_of(self)


class AttributeProxy(ValueProxy, fx.proxy.Attribute):
    """An attribute of a proxy, such as its shape; becomes a node when it is used."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return fx.proxy.Attribute.__call__(self, *args, **kwargs)

    def __init__(self, root: fx.Proxy, attr: str) -> None:
        fx.proxy.Attribute.__init__(self, root, attr)


class _Current(threading.local):
    """Of each thread the tracer that follows it, if one does."""

    tracer: ValueTracer | None = None


current = _Current()
