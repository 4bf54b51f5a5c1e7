"""The vectors that a layer, or a parameter that a forward multiplies by, takes and gives."""

import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ksurgeon.errors import InputError
from ksurgeon.find.inputs import ExampleInputs
from ksurgeon.find.site import Site

__all__ = ["WatchParameters", "input_rows", "output_rows", "place_rows", "row_mask", "shown_rows"]

_RIGHT = ("matmul", "__matmul__", "mm", "__rmatmul__")


def input_rows(value: Tensor, module: nn.Module) -> Tensor:
    """What the layer multiplies, its vectors along the last dimension."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        return value
    dims = len(module.kernel_size)
    if not module.transposed and any(step > 1 for step in module.stride):
        value = value[(..., *(slice(None, None, step) for step in module.stride))]  # type: ignore[index]
    return value.movedim(-dims - 1, -1)


def output_rows(value: Tensor, module: nn.Module) -> Tensor:
    """What the layer gives, its vectors along the last dimension."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        return value
    return value.movedim(-len(module.kernel_size) - 1, -1)


def place_rows(value: object, site: Site) -> Tensor:
    """What reaches the place of an insertion, its vectors along the last dimension, float64: variances are
    taken, which may be small beside the mean.

    Raises:
        InputError: it is nothing that could be mapped there.
    """
    dim, size = site.dim, site.in_features
    assert dim is not None
    if isinstance(value, Tensor) and not value.is_complex() and value.shape[dim : dim + 1] == (size,):
        return value.movedim(dim, -1).double()
    got = f"{tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
    raise InputError(f"{site.path} takes real tensors of {size} entries along dimension {dim}, got {got}")


def row_mask(batch: ExampleInputs) -> Tensor | None:
    """``attention_mask`` of a batch as booleans, ``(examples, positions)``; None without one or where it
    hides nothing."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if not isinstance(mask, Tensor) or mask.dim() != 2 or bool(mask.all()):
        return None
    return mask.bool()


def shown_rows(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Rows ``(…, features)`` as ``(n, features)``, less those that a mask ``(examples, positions)`` hides."""
    if mask is not None and rows.dim() == 3 and rows.shape[:2] == mask.shape:
        return rows[mask]
    return rows.reshape(-1, rows.shape[-1])


class WatchParameters(TorchFunctionMode):
    """Inside, products with parameters are told of.

    Args:
        parameters: the sites, by ``id`` of the parameter or of the layer's weight.
        take: called with the site, the operand, and the operand with its vectors along the last dimension.
        give: called with the site, the product, and how its gradient's vectors come to lie along the last
            dimension; what it returns takes the product's place.
    """

    def __init__(
        self,
        parameters: Mapping[int, Site],
        take: Callable[[Site, Tensor, Tensor], None] | None,
        give: Callable[[Site, Tensor, Callable[[Tensor], Tensor]], Tensor] | None,
    ) -> None:
        super().__init__()
        self._sites, self._take, self._give = parameters, take, give

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.multi_head_attention_forward:
            with self:  # a mode is off while it handles a call
                return _looked_into(func)(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if len(args) < 2 or not isinstance(args[1], Tensor) or not isinstance(result, Tensor):
            return result
        if name == "linear" or name in _RIGHT:
            (site, weight), as_is, operand = self._site(args[1], name == "linear"), True, args[0]
            if site is None and name in _RIGHT:
                (site, weight), as_is, operand = self._site(args[0]), False, args[1]
            if site is not None and result.dim() > 1:
                if self._take is not None:
                    self._take(site, operand, operand if as_is else operand.mT)
                if self._give is not None:
                    return self._give(site, result, _outputs(args[1], weight) if as_is else _turned)
        return result

    def _site(self, operand: Any, or_rows: bool = False) -> tuple[Site | None, Any]:
        """The site of a parameter, of a transpose of one, or with ``or_rows`` of some of its rows; and it."""
        if not isinstance(operand, Tensor) or operand.dim() != 2:
            return None, None
        base = operand if operand._base is None else operand._base
        site = self._sites.get(id(base))
        some = or_rows and base.dim() == 2 and operand.stride() == base.stride()
        whole = base.numel() == operand.numel()
        return (site, base) if whole or (some and operand.shape[1] == base.shape[1]) else (None, None)


@cache
def _looked_into(function: Any) -> Callable[..., Any]:
    """A function of ``torch.nn.functional`` that does not hand itself over as a whole to those who watch."""
    scope = function.__globals__ | {"has_torch_function": lambda _: False}
    inner = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    inner.__kwdefaults__ = function.__kwdefaults__
    return inner


def _turned(rows: Tensor) -> Tensor:
    return rows.mT


def _outputs(operand: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """How gradients of a product with some rows of a weight become those of a product with all of them."""
    if operand.numel() == weight.numel():
        return lambda rows: rows
    before = operand.storage_offset() // weight.shape[1]
    after = len(weight) - before - len(operand)
    return lambda rows: F.pad(rows, [int(before), int(after)])
