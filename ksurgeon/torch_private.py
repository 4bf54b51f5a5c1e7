"""All that ksurgeon uses of PyTorch's private names; nothing else imports one. Last seen in torch 2.14.1.

A version that renames one of them breaks the import of this file, or the function that says what it did.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass, TensorBase, _autograd
from torch._C import _get_tracing_state as jit_trace
from torch._C import _has_storage as has_storage
from torch._C import _is_any_autocast_enabled as any_autocast
from torch._C import _len_torch_dispatch_stack as dispatch_modes
from torch._C._functorch import is_batchedtensor as is_batched_tensor
from torch._C._functorch import is_legacy_batchedtensor as is_legacy_batched_tensor
from torch._C._functorch import peek_interpreter_stack as top_transform
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.modules.module import _global_forward_hooks_with_kwargs
from torch.nn.modules.module import _has_any_global_hook as has_any_global_hook
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.overrides import _pop_mode as pop_function_mode
from torch.overrides import _push_mode as push_function_mode
from torch.utils import _device
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as without_modes
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as dispatch_mode_stack
from torch.utils._python_dispatch import _pop_mode as pop_dispatch_mode
from torch.utils._python_dispatch import _push_mode as push_dispatch_mode

__all__ = [
    "DisableTorchFunctionSubclass",
    "FakeTensor",
    "FakeTensorMode",
    "SavedTensorHooks",
    "TensorBase",
    "TorchDispatchMode",
    "any_autocast",
    "compilation_lock",
    "compile_package",
    "default_device",
    "dispatch_mode_stack",
    "dispatch_modes",
    "forget_hook_with_kwargs",
    "function_modes",
    "has_any_global_hook",
    "has_storage",
    "has_tangents",
    "is_batched_tensor",
    "is_legacy_batched_tensor",
    "jit_trace",
    "lerp_all_",
    "load_package",
    "make_subclass",
    "memory_of",
    "not_compiled",
    "pop_dispatch_mode",
    "pop_function_mode",
    "pop_saved_tensor_hooks",
    "push_dispatch_mode",
    "push_function_mode",
    "push_saved_tensor_hooks",
    "pytree",
    "set_default_device",
    "sleep_on_gpu",
    "top_transform",
    "without_modes",
]

not_compiled = torch._disable_dynamo  # type: ignore[attr-defined]
"""A decorator: ``torch.compiler.disable`` that does not import the compiler at once."""

make_subclass = Tensor._make_subclass
"""A tensor of a subclass that shares the memory of a plain one."""

SavedTensorHooks = tuple[Callable[..., Any], Callable[..., Any]]


def has_tangents() -> bool:
    """Whether forward-mode derivatives are under way (``torch.autograd.forward_ad``)."""
    return forward_ad._current_level >= 0


def memory_of(tensor: Tensor) -> int:
    """What identifies the storage of a tensor."""
    return tensor.untyped_storage()._cdata


def forget_hook_with_kwargs(number: int) -> None:
    """Remove the flag of a removed global hook, which PyTorch leaves to slow all modules."""
    _global_forward_hooks_with_kwargs.pop(number, None)


def default_device() -> Any:
    return _device.CURRENT_DEVICE


def set_default_device(device: Any) -> None:
    """Without the mode that ``torch.set_default_device`` pushes."""
    _device.CURRENT_DEVICE = device


def pop_saved_tensor_hooks() -> list[SavedTensorHooks]:
    """All hooks for saved tensors, the outermost first."""
    found = []
    while (hooks := _autograd._top_saved_tensors_default_hooks(True)) is not None:
        _autograd._pop_saved_tensors_default_hooks()
        found.append(hooks)
    return found[::-1]


def push_saved_tensor_hooks(hooks: Sequence[SavedTensorHooks]) -> None:
    for pair in hooks:
        _autograd._push_saved_tensors_default_hooks(*pair)


def compilation_lock() -> AbstractContextManager[Any]:
    """What ``torch.compile`` holds while it compiles."""
    import torch._dynamo.convert_frame as frames

    return getattr(frames, "compile_lock", nullcontext())


def compile_package(program: torch.export.ExportedProgram, file: Path) -> None:
    """Compile a program with AOTInductor into a file."""
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(program, package_path=str(file))


def load_package(file: Path) -> Callable[..., Any]:
    """The model that ``compile_package`` wrote."""
    from torch._inductor import aoti_load_package

    return aoti_load_package(str(file))


def lerp_all_(values: list[Tensor], ends: list[Tensor], weight: float) -> None:
    """Move all values towards their ends, in place."""
    torch._foreach_lerp_(values, ends, weight)


def sleep_on_gpu(cycles: int) -> None:
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
