"""What is put in the place of functions of torch and einops while a forward is traced."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ksurgeon.find.proxies import ValueProxy

if TYPE_CHECKING:
    from ksurgeon.find.tracer import ModuleTracer

__all__ = ["noting_contexts", "packed", "seeing_sizes"]

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


@contextmanager
def seeing_sizes() -> Iterator[None]:
    """Make functions that cannot dispatch on a proxy do so: some of torch, and einops under any name."""
    einops = sys.modules.get("einops")
    names = ("rearrange", "reduce", "repeat", "einsum", "unpack")
    functions = [getattr(einops, name) for name in names] if einops else []
    wrapped = {id(function): _wrapped(function) for function in functions}
    if einops:
        wrapped[id(einops.pack)] = _pack
    holders = [(torch, name, _wrapped(getattr(torch, name))) for name in _SIZED]
    if wrapped:
        for module_name, module in list(sys.modules.items()):
            if module is not None and not module_name.startswith(("einops.", "torch.")):
                held = list(getattr(module, "__dict__", {}).items())
                holders += [
                    (module, name, wrapped[id(value)]) for name, value in held if id(value) in wrapped
                ]
    originals = [(module, name, getattr(module, name)) for module, name, _ in holders]
    try:
        for module, name, wrapper in holders:
            setattr(module, name, wrapper)
        yield
    finally:
        for module, name, function in originals:
            setattr(module, name, function)


@contextmanager
def noting_contexts(tracer: "ModuleTracer") -> Iterator[None]:
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
