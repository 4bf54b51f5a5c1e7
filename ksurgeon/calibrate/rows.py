"""The vectors that a layer, or a parameter that a forward multiplies by, takes and gives."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ksurgeon.find.site import Site

__all__ = ["WatchParameters", "input_rows", "output_rows", "shown_rows"]

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
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if len(args) < 2 or not isinstance(args[1], Tensor) or not isinstance(result, Tensor):
            return result
        if name == "linear" or name in _RIGHT:
            site, as_is = self._site(args[1]), True
            operand = args[0]
            if site is None and name in _RIGHT:
                site, as_is, operand = self._site(args[0]), False, args[1]
            if site is not None and result.dim() > 1:
                if self._take is not None:
                    self._take(site, operand, operand if as_is else operand.mT)
                if self._give is not None:
                    return self._give(site, result, (lambda grad: grad) if as_is else (lambda grad: grad.mT))
        return result

    def _site(self, operand: Any) -> Site | None:
        """The site of a parameter, or of a transpose of one."""
        if not isinstance(operand, Tensor) or operand.dim() != 2:
            return None
        base = operand if operand._base is None else operand._base
        site = self._sites.get(id(base))
        return site if site is not None and base.numel() == operand.numel() else None
