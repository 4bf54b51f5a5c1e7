"""The modes that PyTorch keeps for a thread, given to each of the greenlets that share the thread."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ksurgeon.torch_private import (
    SavedTensorHooks,
    default_device,
    dispatch_mode_stack,
    function_modes,
    pop_dispatch_mode,
    pop_function_mode,
    pop_saved_tensor_hooks,
    push_dispatch_mode,
    push_function_mode,
    push_saved_tensor_hooks,
    set_default_device,
)

__all__ = ["OwnModes", "without_autocast"]

_DEVICES = tuple(
    name
    for name in ("cpu", "cuda", "xpu", "mps", "hpu", "ipu", "xla", "mtia", "maia", "privateuseone")
    if torch.amp.is_autocast_available(name)
)
_ATTENTION: tuple[tuple[Callable[[], bool], Callable[[bool], None]], ...] = (
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, products on the device are computed in the dtype of their operands."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class OwnModes:
    """Modes of one greenlet, those of the caller until it changes them itself.

    They are whether gradients are recorded, inference mode, autocast, modes for functions and for dispatch,
    hooks for saved tensors, the default dtype and device, and the implementations of attention.
    """

    def __init__(self) -> None:
        self._own: _Modes | None = None
        self._left: torch.inference_mode | None = None

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """Inside, the greenlet's modes hold in the place of the caller's, which come back at the end."""
        callers, entered = _Modes.now(), None
        if self._left is not None:
            self._left.__exit__(None, None, None)
            self._left = None
        if self._own is not None:
            entered = _switch_inference(self._own.inference)
            self._own.enter()
        try:
            yield
        finally:
            self._own = _Modes.now()
            if entered is not None:
                entered.__exit__(None, None, None)
            self._left = _switch_inference(callers.inference)
            callers.enter()


def _switch_inference(wanted: bool) -> torch.inference_mode | None:
    """Inference mode as wanted, and what to exit to have it as it was; there is no other way to set it."""
    if torch.is_inference_mode_enabled() == wanted:
        return None
    mode = torch.inference_mode(wanted)
    mode.__enter__()
    return mode


@dataclass(frozen=True)
class _Modes:
    grad: bool
    inference: bool
    autocast: list[tuple[str, bool, torch.dtype]]
    cache: bool
    functions: list[Any]
    dispatch: list[Any]
    hooks: list[SavedTensorHooks]
    dtype: torch.dtype
    device: Any
    attention: list[bool]

    @classmethod
    def now(cls) -> "_Modes":
        hooks = pop_saved_tensor_hooks()
        push_saved_tensor_hooks(hooks)
        return cls(
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            [(name, torch.is_autocast_enabled(name), torch.get_autocast_dtype(name)) for name in _DEVICES],
            torch.is_autocast_cache_enabled(),
            function_modes(),
            dispatch_mode_stack(),
            hooks,
            torch.get_default_dtype(),
            default_device(),
            [enabled() for enabled, _ in _ATTENTION],
        )

    def enter(self) -> None:
        """Put all but inference mode in place."""
        _restack(function_modes(), self.functions, pop_function_mode, push_function_mode)
        _restack(dispatch_mode_stack(), self.dispatch, pop_dispatch_mode, push_dispatch_mode)
        torch.set_grad_enabled(self.grad)
        torch.set_autocast_cache_enabled(self.cache)
        for name, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(name, enabled)
            torch.set_autocast_dtype(name, dtype)
        pop_saved_tensor_hooks()
        push_saved_tensor_hooks(self.hooks)
        torch.set_default_dtype(self.dtype)
        set_default_device(self.device)
        for (_, enable), wanted in zip(_ATTENTION, self.attention, strict=True):
            enable(wanted)


def _restack(
    present: Sequence[Any], wanted: Sequence[Any], pop: Callable[[], Any], push: Callable[[Any], None]
) -> None:
    """Make one stack of modes of the other, down to what they share."""
    shared = 0
    while shared < min(len(present), len(wanted)) and present[shared] is wanted[shared]:
        shared += 1
    for _ in present[shared:]:
        pop()
    for mode in wanted[shared:]:
        push(mode)
