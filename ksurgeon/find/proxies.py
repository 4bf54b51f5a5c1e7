"""Values of a traced forward that answer, as the real ones would, what the forward asks of them."""

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

if TYPE_CHECKING:
    from ksurgeon.find.tracer import ModuleTracer

__all__ = ["AttributeProxy", "ValueProxy"]


class ValueProxy(fx.Proxy):
    """A value whose fake counterpart is known; what is asked of it as a plain number or truth is guarded."""

    tracer: "ModuleTracer"

    def __getattr__(self, name: str) -> Any:
        value = self.tracer.known(self)
        if value is not None and not hasattr(value, name):
            raise AttributeError(f"'{type(value).__name__}' object has no attribute '{name}'")
        attribute = AttributeProxy(self, name)
        if value is not None and isinstance(getattr(value, name), str):  # such as the type of a device
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
        return self.tracer.fix(self).__index__()

    def __float__(self) -> float:
        return float(self.tracer.fix(self))

    def __contains__(self, item: object) -> bool:
        return item in self.tracer.value_of(self)


class AttributeProxy(ValueProxy, fx.proxy.Attribute):
    """An attribute of a proxy, such as its shape; becomes a node when it is used."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return fx.proxy.Attribute.__call__(self, *args, **kwargs)

    def __init__(self, root: fx.Proxy, attr: str) -> None:
        fx.proxy.Attribute.__init__(self, root, attr)
