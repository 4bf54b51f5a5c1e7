"""What stands in the place of functions of torch, math and einops while a forward is traced.

Every stand-in does what its original does, but in the thread that traces: other threads, and code that
imported one meanwhile, may call them at any time.
"""

import functools
import math
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ksurgeon.find.guards import require_all
from ksurgeon.find.proxies import AttributeProxy, ValueProxy, current
from ksurgeon.torch_private import pytree

__all__ = ["Place", "packed", "places", "places_in"]

Holder = dict[str, Any] | type
Place = tuple[Holder, str, Callable[[Any], Any]]
"""Globals of a module or a class, a name in it, and what makes a stand-in of what is there."""

# Functions that do not dispatch on their sizes, and so would not see one that is a node.
_SIZED = (
    "arange",
    "broadcast_to",
    "empty",
    "eye",
    "finfo",
    "full",
    "iinfo",
    "linspace",
    "ones",
    "rand",
    "randn",
    "randint",
    "reshape",
    "tensor",
    "tile",
    "unflatten",
    "zeros",
)


def _wrapped(function: Callable[..., Any], **meta: bool) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if current.tracer is not None:
            for leaf in pytree.tree_leaves((args, kwargs)):
                if isinstance(leaf, ValueProxy):
                    proxy = leaf.tracer.create_proxy("call_function", function, args, kwargs)
                    if isinstance(proxy, fx.Proxy):
                        proxy.node.meta.update(meta)
                    return proxy
        return function(*args, **kwargs)

    return call


def _wrapped_as_by_fx(function: Callable[..., Any]) -> Callable[..., Any]:
    """As ``torch.fx.wrap`` does it: the code of the graph tells later traces to do so, too."""
    return _wrapped(function, is_wrapped=True)


def packed(tensors: Any, pattern: str) -> Tensor:
    """The tensor that ``einops.pack`` gives."""
    from einops.packing import pack  # not under the name that is wrapped while a forward is traced

    tensor: Tensor = pack(tensors, pattern)[0]
    return tensor


def _packed_shapes(tensors: Any, pattern: str) -> Any:
    from einops.packing import pack

    return pack(tensors, pattern)[1]


def _pack(_: Any) -> Callable[[Any, str], Any]:
    """``einops.pack`` in a forward that is traced: the tensor and the shapes each are a node."""

    def pack(tensors: Any, pattern: str) -> Any:
        return _wrapped(packed)(tensors, pattern), _wrapped(_packed_shapes)(tensors, pattern)

    return pack


def _isinstance(plain: Any) -> Callable[[Any, Any], bool]:
    def is_instance(value: Any, kind: Any) -> bool:
        """Tells a forward that a proxy of a tensor is a tensor."""
        if plain(value, kind):
            return True
        if not _is_proxy(value):
            return False
        known = value.tracer.known(value)
        return plain(known, Tensor) and plain(known, kind)

    return is_instance


def _check_with(plain: Any) -> Callable[..., None]:
    def check(error: Any, condition: Any, message: Any) -> None:
        plain(error, bool(condition) if _is_proxy(condition) else condition, message)

    return check


def _check_all_with(plain: Any) -> Callable[..., None]:
    def check(error: Any, condition: Any, message: Any) -> None:
        if _is_proxy(condition):
            condition.tracer.create_node("call_function", require_all, (condition.node,), {})
        else:
            plain(error, condition, message)

    return check


def _vmap(plain: Any) -> Callable[..., Any]:
    @functools.wraps(plain)
    def vmap(function: Callable[..., Any], *options: Any, **named: Any) -> Any:
        """``torch.vmap`` whose product takes proxies, and may hold some in its closures, as one node."""
        mapped = plain(function, *options, **named)
        if current.tracer is None:
            return mapped

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            cells = list(_cells_with_proxies(function))
            held = [cell.cell_contents for cell in cells]
            proxies = [leaf for leaf in (*pytree.tree_leaves((args, kwargs)), *held) if _is_proxy(leaf)]
            if not proxies:
                return mapped(*args, **kwargs)

            def filled(values: list[Any], *args: Any, **kwargs: Any) -> Any:
                try:
                    for cell, value in zip(cells, values, strict=True):
                        cell.cell_contents = value
                    return mapped(*args, **kwargs)
                finally:
                    for cell, proxy in zip(cells, held, strict=True):
                        cell.cell_contents = proxy

            whole = (_Opaque(filled), (held, *args), kwargs)
            return proxies[0].tracer.create_proxy("call_function", _call, whole, {})

        return call

    return vmap


def _script_function(plain: Any) -> Callable[..., Any]:
    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        """A call of what ``torch.jit.script`` made of a function; with proxies it is one node."""
        for leaf in pytree.tree_leaves((args, kwargs)) if current.tracer is not None else ():
            if _is_proxy(leaf):
                whole = (_Opaque(function), args, kwargs)
                return leaf.tracer.create_proxy("call_function", _call, whole, {})
        return plain(function, *args, **kwargs)

    return call


def _module_call(plain: Any) -> Callable[..., Any]:
    @functools.wraps(plain)
    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        tracer = current.tracer
        if tracer is None:
            return plain(module, *args, **kwargs)
        return tracer.call_module(module, functools.partial(plain, module), args, kwargs)

    return call


def _module_getattr(plain: Any) -> Callable[..., Any]:
    @functools.wraps(plain)
    def get(module: nn.Module, name: str) -> Any:
        value, tracer = plain(module, name), current.tracer
        return value if tracer is None else tracer.getattr(name, value, tracer.parameters)

    return get


def _noted(name: str) -> Callable[[Any], Any]:
    """A method that enters a context, which a forward that is traced is noted to do."""

    def noted(plain: Any) -> Callable[..., Any]:
        @functools.wraps(plain)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            tracer = current.tracer
            if tracer is not None and not tracer.evaluating:
                tracer.contexts.append(name)
            return plain(self, *args, **kwargs)

        return method

    return noted


class _Opaque:
    """An object that no graph can hold, but that is called while one is made."""

    def __init__(self, held: Any) -> None:
        self.held = held


def _call(function: _Opaque, args: Any, kwargs: Any) -> Any:
    return function.held(*args, **kwargs)


def _is_proxy(value: Any) -> bool:
    return type(value) in (ValueProxy, AttributeProxy)


def _cells_with_proxies(value: Any) -> Iterator[Any]:
    """Cells of a function's closure, and of functions in it, that hold a proxy."""
    for cell in getattr(value, "__closure__", None) or ():
        held = cell.cell_contents
        if _is_proxy(held):
            yield cell
        for inner in held if isinstance(held, (tuple, list)) else (held,):
            if isinstance(inner, types.FunctionType):
                yield from _cells_with_proxies(inner)


_FIXED: tuple[Place, ...] = (
    *((vars(torch), name, _wrapped) for name in _SIZED),
    (vars(torch), "_check_with", _check_with),
    (vars(torch), "_check_tensor_all_with", _check_all_with),
    (vars(torch), "vmap", _vmap),
    (torch.jit.ScriptFunction, "__call__", _script_function),
    (nn.Module, "__call__", _module_call),
    (nn.Module, "__getattr__", _module_getattr),
    *(
        (context, "__enter__", _noted(context.__name__))
        for context in (torch.autocast, torch.no_grad, torch.enable_grad, torch.inference_mode)
    ),
    (torch.set_grad_enabled, "__init__", _noted("set_grad_enabled")),
)
_MATH = frozenset(id(f) for name, f in vars(math).items() if callable(f) and not name.startswith("_"))
_EINOPS = ("rearrange", "reduce", "repeat", "einsum", "unpack")


def places() -> Iterator[Place]:
    """All places of stand-ins: in torch, math, what ``torch.fx.wrap`` names, and of einops under any name.

    ``isinstance`` gets them in all modules but those of PyTorch, which take a tensor apart in C++, and those
    of Python. The builtin itself stays: ``torch.compile`` knows it by its identity.
    """
    yield from _FIXED
    yield from places_in(vars(math))
    for (_, name), globals_ in list(fx._symbolic_trace._wrapped_fns_to_patch.items()):
        yield globals_, name, _wrapped_as_by_fx
    einops = sys.modules.get("einops")
    made = (
        {id(getattr(einops, name)): _wrapped for name in _EINOPS} | {id(einops.pack): _pack} if einops else {}
    )
    for module_name, module in list(sys.modules.items()):
        scope: dict[str, Any] = getattr(module, "__dict__", {})
        package = module_name.partition(".")[0]
        if not scope or package == "torch" or package in sys.stdlib_module_names:
            continue
        yield scope, "isinstance", _isinstance
        if not module_name.startswith("einops."):
            yield from ((scope, n, made[id(v)]) for n, v in list(scope.items()) if id(v) in made)


def places_in(scope: dict[str, Any]) -> list[Place]:
    """The places among the globals of a forward, or of math: functions of math and ``isinstance``."""
    found: list[Place] = [(scope, n, _wrapped_as_by_fx) for n, v in list(scope.items()) if id(v) in _MATH]
    own = str(scope.get("__name__", "")).partition(".")[0] not in ("torch", "math")
    return [*found, (scope, "isinstance", _isinstance)] if own else found
