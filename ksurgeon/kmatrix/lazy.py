"""The dense matrix of a structured layer: multiplied out when it is needed, and not to be written to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Self

import numpy as np
import torch
from torch import Tensor, nn

from ksurgeon.errors import SurgeryError
from ksurgeon.kernels.eager import has_modes, has_transforms, is_jit_traced
from ksurgeon.torch_private import DisableTorchFunctionSubclass, has_storage, make_subclass, memory_of, pytree

__all__ = ["ComputedDense", "HasComputed", "LazyDense", "lazy_dense", "plain"]

# What is known without the product.
_ABOUT = ("dtype", "device", "shape", "ndim", "layout", "requires_grad", "is_cuda", "is_meta")
_KNOWN = {
    *(getattr(Tensor, name).__get__ for name in _ABOUT),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.is_complex, Tensor.__len__),
}
_OF_PLAIN = (Tensor.__deepcopy__, Tensor.__reduce_ex__, Tensor.__repr__)
_BASE = Tensor._base.__get__  # type: ignore[union-attr]
_SET_REQUIRES_GRAD = Tensor.requires_grad.__set__  # type: ignore[attr-defined]
_OPERATORS = ("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift",
              "rshift", "matmul")  # fmt: skip
_WRITES = frozenset({"__set__", "__setitem__", *(f"__i{operator}__" for operator in _OPERATORS)})
_REMEDY = (
    "ksurgeon.load_dense fits the model to other dense weights, the parameters of layer.matrix.factors can "
    "be trained, frozen, pruned and written to, and ksurgeon.revert makes the layers dense"
)


class ComputedDense(Tensor):
    """A dense matrix, or a factor, that was computed; every other tensor is plain, but for views of it.

    What writes to it, or to a view of it, raises SurgeryError: the layer would never know.
    """

    _detached = False
    _is_hf_initialized = True  # transformers leaves such tensors as they are when it makes missing weights

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            with DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if not (func == _SET_REQUIRES_GRAD and getattr(args[0], "_detached", False)):
            _refuse_writes(func, args, kwargs)
        if func in _OF_PLAIN:
            args = pytree.tree_map_only(ComputedDense, plain, args)
        if func == _BASE:  # of views without end
            with DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        with DisableTorchFunctionSubclass():
            result = _guarded(
                func(*args, **kwargs), [t for t in pytree.tree_leaves(args) if isinstance(t, cls)]
            )
        if func is Tensor.detach:
            result._detached = True  # what begins a graph of its own, as checkpointing lets it
        return result


class LazyDense(Tensor):
    """Stands for the tensor that ``make`` gives, which any operation gets in its place.

    Models look at ``layer.weight.dtype`` before they call a layer, T5 for every token. What looks at its
    memory past all of PyTorch's ways finds NaN. It is written to as little as a ``ComputedDense``.
    """

    _make: Callable[[], Tensor]
    _made: Tensor | None = None
    _is_hf_initialized = True

    @staticmethod
    def __new__(cls, make: Callable[[], Tensor], shape: tuple[int, ...], like: Tensor) -> Self:
        nothing = torch.full((), torch.nan, dtype=like.dtype, device=like.device)
        made: Self = make_subclass(cls, nothing.expand(shape))  # type: ignore[assignment]
        made._make = make
        return made

    def __init__(self, *_: Any) -> None: ...

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _KNOWN:
            with DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        _refuse_writes(func, args, kwargs or {})
        args, kwargs = pytree.tree_map_only(LazyDense, _dense, (args, kwargs or {}))
        return func(*args, **kwargs)


class HasComputed(nn.Module):
    """A module with attributes that are computed, and that nothing can be assigned to."""

    _computed: tuple[str, ...] = ("weight",)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As of any module.

        Raises:
            SurgeryError: the parameter is computed, or would stand in for one (``weight_orig``).
        """
        self._require_free(name)
        super().register_parameter(name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As of any module.

        Raises:
            SurgeryError: as of ``register_parameter``.
        """
        self._require_free(name)
        super().register_buffer(name, tensor, persistent)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._computed:
            self._refuse(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._computed:
            self._refuse(name)
        super().__delattr__(name)

    def _require_free(self, name: str) -> None:
        for own in self._computed:
            if name == own or name.startswith(f"{own}_"):
                self._refuse(own)

    def _refuse(self, name: str) -> NoReturn:
        raise SurgeryError(
            f"{name} of a {type(self).__name__} is computed from factors and cannot be set, deleted or "
            f"reparametrised; {_REMEDY}"
        )


def lazy_dense(make: Callable[[], Tensor], shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The tensor that ``make`` gives, of that shape, and of the dtype and device of ``like``.

    It is made when it is read; at once where gradients may be wanted of it, or a program is traced or
    transformed. Where no program is, it is not to be written to.
    """
    if torch.compiler.is_compiling() or is_jit_traced() or has_transforms() or has_modes():
        return make()
    if torch.is_grad_enabled():
        return make().as_subclass(ComputedDense)
    return LazyDense(make, shape, like)


def plain(tensor: Tensor) -> Tensor:
    """The same tensor, free to be written to."""
    if isinstance(tensor, LazyDense):
        tensor = _dense(tensor)
    with DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor) if isinstance(tensor, ComputedDense) else tensor


def _dense(lazy: LazyDense) -> Tensor:
    if lazy._made is None:
        with torch.no_grad():
            lazy._made = lazy._make().as_subclass(ComputedDense)
    return lazy._made


def _refuse_writes(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    name = getattr(func, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or name in _WRITES or kwargs.get("inplace")
    written = (args[0] if args else next(iter(kwargs.values()), None)) if in_place else None
    leaves = pytree.tree_leaves((written, kwargs.get("out")))
    if any(isinstance(leaf, (ComputedDense, LazyDense)) for leaf in leaves):
        raise SurgeryError(
            f"{name}: this tensor is computed each time it is read, and what is written to it would be lost; "
            f"{_REMEDY}. For a tensor of your own, clone it first"
        )


def _guarded(result: Any, given: Sequence[Tensor]) -> Any:
    """The result; views of what was given are not to be written to either."""
    if isinstance(result, np.ndarray):
        result.flags.writeable = False  # it shares memory with the tensor
        return result

    def guard(tensor: Tensor) -> Tensor:
        if not has_storage(tensor):  # sparse, or wrapped by a transform
            return tensor
        memory = memory_of(tensor)
        shares = any(memory == memory_of(t) for t in given)
        return tensor.as_subclass(ComputedDense) if shares else tensor

    if type(result) is Tensor:
        return guard(result)
    if isinstance(result, (tuple, list)) and any(type(item) is Tensor for item in result):
        return pytree.tree_map_only(Tensor, guard, result)
    return result
