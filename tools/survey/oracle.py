"""What a run computes, seen below ksurgeon at PyTorch's own operators: products and Fourier transforms.

It shares no code with the finder, so that what one of them overlooks the other may see.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ksurgeon.torch_private import TorchDispatchMode, pytree

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
    """Inside, every parameter that takes part in a matrix product is noted, and every Fourier transform.

    What is computed from parameters alone counts as them; kernels of convolutions larger than 1 do not
    count, nor do vectors, nor transforms of what was computed from parameters alone.

    Attributes:
        found: parameters in a product, by the name that they have in the model.
        transforms: Fourier transforms in one call of a module's own forward, the most that there were, by
            the module's path.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.transforms: dict[str, int] = {}
        self._model = model
        self._parameters = dict(model.named_parameters())
        self._of: dict[int, frozenset[str]] = {}
        self._kept: list[Tensor] = []
        self._running: list[Counter[str]] = []
        for name, parameter in self._parameters.items():
            self._of[_storage(parameter)] = self._of.get(_storage(parameter), frozenset()) | {name}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The mode, with hooks that tell which module is running."""
        handles = []

        def enter(*_: object) -> None:
            self._running.append(Counter())

        def leave(path: str) -> Any:
            def hook(*_: object) -> None:
                count = self._running.pop().total()
                if count:
                    self.transforms[path] = max(count, self.transforms.get(path, 0))

            return hook

        try:
            for path, module in self._model.named_modules():
                if type(module).forward is not nn.Module.forward and not _is_script(module):
                    handles.append(module.register_forward_pre_hook(enter, prepend=True))
                    handles.append(module.register_forward_hook(leave(path)))
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = _tensors((args, kwargs))
        origins = [self._of.get(_storage(tensor)) for tensor in tensors if tensor.dim()]
        constant = bool(origins) and None not in origins
        if name.startswith("_fft_") and not constant and self._running:
            self._running[-1][name] += 1
        if name in _PRODUCTS:
            large = "convolution" in name and any(size != 1 for size in args[1].shape[2:])
            factors = tensors[1:] if "add" in name else tensors  # what comes first is added
            for tensor in factors:
                names = self._of.get(_storage(tensor))
                if names and tensor.dim() > 1 and not large:
                    self.found.update(n for n in names if self._parameters[n].dim() > 1)
        elif constant and name not in ("embedding", "copy_"):
            joined = frozenset().union(*(origin for origin in origins if origin))
            for tensor in _tensors(result):
                if _storage(tensor) not in self._of:
                    self._of[_storage(tensor)] = joined
                    self._kept.append(tensor)  # its memory must not be given to another one
        return result


def _is_script(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.jit")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse
        return id(tensor)
