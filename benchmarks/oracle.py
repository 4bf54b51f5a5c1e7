"""Which parameters a run multiplies matrices by, seen below ksurgeon: at PyTorch's own operators."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Oracle"]

_PRODUCTS = frozenset(
    {
        "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "linear", "matmul", "_grouped_mm",
        "convolution", "_convolution", "_trilinear", "mkldnn_rnn_layer", "lstm", "gru",
        "rnn_tanh", "rnn_relu", "_thnn_fused_lstm_cell", "_native_multi_head_attention",
        "_transformer_encoder_layer_fwd",
    }
)  # fmt: skip


class Oracle(TorchDispatchMode):
    """Inside, every parameter that takes part in a matrix product is noted, by the name it has in the model.

    What is computed from parameters alone counts as them; kernels of convolutions larger than 1 do not
    count, nor do vectors.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._parameters = dict(model.named_parameters())
        self._of: dict[int, frozenset[str]] = {}
        self._kept: list[Tensor] = []
        for name, parameter in self._parameters.items():
            self._of[_storage(parameter)] = self._of.get(_storage(parameter), frozenset()) | {name}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = _tensors((args, kwargs))
        origins = [self._of.get(_storage(tensor)) for tensor in tensors if tensor.dim()]
        if name in _PRODUCTS:
            large = "convolution" in name and any(size != 1 for size in args[1].shape[2:])
            for tensor in tensors:
                names = self._of.get(_storage(tensor))
                if names and tensor.dim() > 1 and not large:
                    self.found.update(n for n in names if self._parameters[n].dim() > 1)
        elif origins and None not in origins and name not in ("embedding", "copy_"):
            joined = frozenset().union(*(origin for origin in origins if origin))
            for tensor in _tensors(result):
                if _storage(tensor) not in self._of:
                    self._of[_storage(tensor)] = joined
                    self._kept.append(tensor)  # its memory must not be given to another one
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse
        return id(tensor)


def uncovered(found: Iterable[str], covered: set[str]) -> list[str]:
    """Parameters of the oracle that are no site and stand under no reason."""
    return sorted(set(found) - covered)
