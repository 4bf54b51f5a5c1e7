"""Which parameters a run multiplied something by, and how it came by them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ksurgeon.find.inputs import tensors_of

__all__ = ["Use", "WatchProducts"]

# Functions that multiply matrices, and where the weight may stand among their arguments.
_PRODUCTS: dict[str, tuple[int, ...]] = {
    "linear": (0, 1),
    "matmul": (0, 1),
    "__matmul__": (0, 1),
    "__rmatmul__": (0, 1),
    "mm": (0, 1),
    "mv": (0, 1),
    "bmm": (0, 1),
    "addmm": (1, 2),
    "addmv": (1, 2),
    "baddbmm": (1, 2),
    "addbmm": (1, 2),
    "tensordot": (0, 1),
    "einsum": (1, 2, 3, 4),
    "grouped_mm": (1,),
    "_grouped_mm": (1,),
    "multi_head_attention_forward": (),  # anywhere
}
# Ways to look at a parameter, or at a part of it, that leave its entries as they are.
_VIEWS = frozenset(
    {
        "T", "mT", "t", "transpose", "swapaxes", "permute", "contiguous", "to", "type_as", "type", "float",
        "half", "bfloat16", "double", "data", "detach", "view", "reshape", "flatten", "unflatten", "squeeze",
        "unsqueeze", "expand", "chunk", "split", "tensor_split", "unbind", "narrow", "select", "clone",
        "__getitem__",
    }
)  # fmt: skip
_NOT_TENSORS = frozenset({"embedding", "copy_", "shape", "dtype", "device", "size", "dim", "__setitem__"})


@dataclass(frozen=True)
class _Origin:
    """The parameters that a tensor was computed from, and by which functions other than views."""

    parameters: frozenset[int]
    functions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Use:
    """A product with a parameter, or with what was computed from parameters alone.

    Attributes:
        module: ``id`` of the innermost module whose forward was running.
        function: name of the function that multiplied.
        shape: of the operand, which may be a part or a transpose of the parameter.
        left: whether the operand was the left one of a matrix product.
        rows: vectors that were multiplied.
        computed: functions other than views that the operand went through; empty if it is the parameter.
        joined: whether the operand was computed from more than one parameter.
        constant: whether what it was multiplied by was computed from parameters alone, too.
    """

    module: int
    function: str
    shape: tuple[int, ...]
    left: bool
    rows: int
    computed: tuple[str, ...] = ()
    joined: bool = False
    constant: bool = False


class WatchProducts(TorchFunctionMode):
    """Inside, every product with a parameter is noted.

    Attributes:
        uses: of every parameter, by ``id``.
        lookups: ``id`` of every parameter that served as the table of an embedding.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], running: Callable[[], int]) -> None:
        super().__init__()
        self.uses: dict[int, list[Use]] = defaultdict(list)
        self.lookups: set[int] = set()
        self._known = {id(parameter) for parameter in parameters}
        self._running = running

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = _name(func)
        if name in _PRODUCTS:
            self._note(name, args, kwargs, result)
        elif name == "embedding":
            table = self._origin(args[1]) if len(args) > 1 else None
            self.lookups.update(table.parameters if table else ())
        elif name not in _NOT_TENSORS:
            self._follow(name, args, kwargs, result)
        return result

    def _origin(self, value: Any) -> _Origin | None:
        if not isinstance(value, Tensor):
            return None
        if id(value) in self._known:
            return _Origin(frozenset({id(value)}))
        return getattr(value, "_ksurgeon_origin", None)

    def _follow(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """What is computed from parameters alone is remembered to be."""
        if not any(self._origin(tensor) for tensor in args if isinstance(tensor, Tensor)) and name not in (
            "cat", "stack", "concat",
        ):  # fmt: skip
            return
        origins = [self._origin(tensor) for tensor in tensors_of((args, kwargs)) if tensor.dim()]
        known = [origin for origin in origins if origin is not None]
        if not known or len(known) < len(origins):
            return
        parameters = frozenset().union(*(origin.parameters for origin in known))
        through = tuple(function for origin in known for function in origin.functions)
        if name not in _VIEWS:
            through = (*through, name)
        for tensor in tensors_of(result):
            if id(tensor) not in self._known:
                tensor._ksurgeon_origin = _Origin(parameters, tuple(dict.fromkeys(through)))  # type: ignore[attr-defined]

    def _note(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        values = [*args, *kwargs.values()]
        if name == "einsum" and len(values) > 1 and isinstance(values[1], (tuple, list)):
            values[1:] = values[1]
        places = _PRODUCTS[name] or range(len(values))
        operands = [k for k in places if k < len(values) and isinstance(values[k], Tensor)]
        origins = {k: self._origin(values[k]) for k in operands}
        product = tensors_of(result)[0]
        for place, origin in origins.items():
            if origin is None or values[place].dim() < 2:
                continue
            left = len(operands) > 1 and place == operands[0]
            along = product.shape[-2 if left and product.dim() > 1 else -1] if product.dim() else 1
            use = Use(
                module=self._running(),
                function=name,
                shape=tuple(values[place].shape),
                left=left,
                rows=product.numel() // max(1, along),
                computed=origin.functions,
                joined=len(origin.parameters) > 1,
                constant=len(places) == len(operands) > 1 and None not in origins.values(),
            )
            for parameter in origin.parameters:
                self.uses[parameter].append(use)


def _name(func: Any) -> str:
    name: str = getattr(func, "__name__", "")
    if name == "__get__":  # a property of Tensor, such as its transpose
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    return name
