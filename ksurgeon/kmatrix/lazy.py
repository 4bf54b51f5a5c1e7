"""The dense matrix of a structured layer, multiplied out when it is needed and not before."""

from collections.abc import Callable, Iterable, Mapping
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

    Models look at ``layer.weight.dtype`` before they call a layer, T5 for every token. What looks at its
    memory past all of PyTorch's ways finds NaN.
    """

    _make: Callable[[], Tensor]
    _made: Tensor | None = None

    @staticmethod
    def __new__(cls, make: Callable[[], Tensor], shape: tuple[int, ...], like: Tensor) -> "LazyDense":
        nothing = torch.full((), torch.nan, dtype=like.dtype, device=like.device)
        made: LazyDense = Tensor._make_subclass(cls, nothing.expand(shape))
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
        args, kwargs = tree_map_only(LazyDense, _dense, (args, kwargs or {}))
        return func(*args, **kwargs)


def _dense(lazy: LazyDense) -> Tensor:
    if lazy._made is None:
        with torch.no_grad():
            lazy._made = lazy._make()
    return lazy._made


def lazy_dense(make: Callable[[], Tensor], shape: tuple[int, ...], factors: Iterable[Tensor]) -> Tensor:
    """The tensor that ``make`` gives, of that shape and of the factors' dtype and device.

    It is made when it is read; at once where gradients may be wanted of it, or a program is traced or
    transformed.
    """
    if (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.maybe_current_level() is not None
    ):
        return make()
    return LazyDense(make, shape, next(iter(factors)))
