"""The dense matrix of a structured layer, multiplied out when it is needed and not before."""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

__all__ = ["LazyDense", "lazy_dense"]

# What is known without the product.
_ABOUT = ("dtype", "device", "shape", "ndim", "layout", "requires_grad", "is_cuda", "is_meta")
_KNOWN = {
    *(getattr(Tensor, name).__get__ for name in _ABOUT),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.is_complex, Tensor.__len__),
}


class LazyDense(Tensor):
    """Stands for the tensor that ``make`` gives, which any operation gets in its place.

    Models look at ``layer.weight.dtype`` before they call a layer, T5 for every token.
    """

    _make: Callable[[], Tensor]

    @staticmethod
    def __new__(
        cls, make: Callable[[], Tensor], shape: Iterable[int], like: Tensor, requires_grad: bool
    ) -> "LazyDense":
        made: LazyDense = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, torch.Size(shape), dtype=like.dtype, device=like.device, requires_grad=requires_grad
        )
        made._make = make
        return made

    def __init__(self, *_: Any) -> None: ...

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _KNOWN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(LazyDense, lambda lazy: lazy._make(), (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map_only(LazyDense, lambda lazy: lazy._make(), (args, kwargs or {}))
        return func(*args, **kwargs)


def lazy_dense(make: Callable[[], Tensor], shape: Iterable[int], factors: Iterable[Tensor]) -> Tensor:
    """The tensor that ``make`` gives, of that shape and of the factors' dtype and device, made when it is
    read; while a program is traced it is made at once."""
    first, *others = factors if torch.is_grad_enabled() else islice(factors, 1)
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return make()
    learned = torch.is_grad_enabled() and any(factor.requires_grad for factor in (first, *others))
    return LazyDense(make, shape, first, learned)
