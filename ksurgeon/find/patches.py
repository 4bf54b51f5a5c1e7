"""What is put in the place of functions of torch and einops while a forward is traced."""

import builtins
import functools
import logging
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ksurgeon.find.guards import require_all
from ksurgeon.find.proxies import AttributeProxy, ValueProxy, ValueTracer

__all__ = ["noting_contexts", "packed", "seeing_values"]

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


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, ValueProxy):
                return leaf.tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return call


def packed(tensors: Any, pattern: str) -> Tensor:
    """The tensor that ``einops.pack`` gives."""
    from einops.packing import pack  # not under the name that is wrapped while a forward is traced

    tensor: Tensor = pack(tensors, pattern)[0]
    return tensor


def _packed_shapes(tensors: Any, pattern: str) -> Any:
    from einops.packing import pack

    return pack(tensors, pattern)[1]


def _pack(tensors: Any, pattern: str) -> Any:
    """``einops.pack`` in a forward that is traced: the tensor and the shapes each are a node."""
    return _wrapped(packed)(tensors, pattern), _wrapped(_packed_shapes)(tensors, pattern)


def _isinstance(value: Any, kind: Any, plain: Callable[[Any, Any], bool] = isinstance) -> bool:
    """``isinstance`` that tells a forward, but not PyTorch itself, that a proxy of a tensor is a tensor."""
    if plain(value, kind):
        return True
    if not _is_proxy(value):
        return False
    known = value.tracer.known(value)
    asked_by = str(sys._getframe(1).f_globals.get("__name__", ""))
    return plain(known, Tensor) and plain(known, kind) and asked_by.partition(".")[0] != "torch"


def _check_with(error: Any, condition: Any, message: Any, check: Any = torch._check_with) -> None:
    check(error, bool(condition) if _is_proxy(condition) else condition, message)


def _check_all_with(
    error: Any, condition: Any, message: Any, check: Any = torch._check_tensor_all_with
) -> None:
    if _is_proxy(condition):
        condition.tracer.create_node("call_function", require_all, (condition.node,), {})
    else:
        check(error, condition, message)


def _vmap(function: Callable[..., Any], *options: Any, plain: Any = torch.vmap, **named: Any) -> Any:
    """``torch.vmap`` whose product takes proxies, and may hold some in its closures, as one node."""
    mapped = plain(function, *options, **named)

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


def _script_function(
    function: Any, *args: Any, plain: Any = torch.jit.ScriptFunction.__call__, **kwargs: Any
) -> Any:
    """A call of what ``torch.jit.script`` made of a function; with proxies it is one node."""
    for leaf in pytree.tree_leaves((args, kwargs)):
        if _is_proxy(leaf):
            return leaf.tracer.create_proxy("call_function", _call, (_Opaque(function), args, kwargs), {})
    return plain(function, *args, **kwargs)


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


@contextmanager
def seeing_values() -> Iterator[None]:
    """Make functions that cannot dispatch on a proxy do so: some of torch, and einops under any name."""
    einops = sys.modules.get("einops")
    names = ("rearrange", "reduce", "repeat", "einsum", "unpack")
    functions = [getattr(einops, name) for name in names] if einops else []
    wrapped = {id(function): _wrapped(function) for function in functions}
    if einops:
        wrapped[id(einops.pack)] = _pack
    holders: list[tuple[Any, str, Callable[..., Any]]] = [
        (torch, name, _wrapped(getattr(torch, name))) for name in _SIZED
    ]
    if wrapped:
        for module_name, module in list(sys.modules.items()):
            if module is not None and not module_name.startswith(("einops.", "torch.")):
                held = list(getattr(module, "__dict__", {}).items())
                holders += [
                    (module, name, wrapped[id(value)]) for name, value in held if id(value) in wrapped
                ]
    holders += [
        (torch, "_check_with", _check_with),
        (torch, "_check_tensor_all_with", _check_all_with),
        (torch, "vmap", _vmap),
        (torch.jit.ScriptFunction, "__call__", _script_function),
        (builtins, "isinstance", _isinstance),
    ]
    originals = [(module, name, getattr(module, name)) for module, name, _ in holders]
    log = logging.getLogger("torch._subclasses.fake_tensor")  # prints a traceback of what is caught here
    silent = log.disabled
    try:
        log.disabled = True
        for module, name, wrapper in holders:
            setattr(module, name, wrapper)
        yield
    finally:
        log.disabled = silent
        for module, name, function in originals:
            setattr(module, name, function)


@contextmanager
def noting_contexts(tracer: ValueTracer) -> Iterator[None]:
    """Note the contexts that are entered while a forward runs."""

    def noting(name: str, enter: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not tracer.evaluating:
                tracer.contexts.append(name)
            return enter(self, *args, **kwargs)

        return wrapper

    classes = (torch.autocast, torch.no_grad, torch.enable_grad, torch.inference_mode)
    originals = [(cls, cls.__enter__) for cls in classes]
    set_grad = torch.set_grad_enabled.__init__
    try:
        for cls, enter in originals:
            cls.__enter__ = noting(cls.__name__, enter)  # type: ignore[method-assign]
        torch.set_grad_enabled.__init__ = noting("set_grad_enabled", set_grad)  # type: ignore[method-assign]
        yield
    finally:
        for cls, enter in originals:
            cls.__enter__ = enter  # type: ignore[method-assign]
        torch.set_grad_enabled.__init__ = set_grad  # type: ignore[method-assign]
