"""What ksurgeon adds to other libraries. Nothing here imports one: the additions wait until somebody does."""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

from ksurgeon.errors import VersionError

__all__ = ["HOOKS", "Hook", "register", "register_unless_refused", "when_imported"]


class Hook(NamedTuple):
    """What is added to a library once its module ``module`` is imported."""

    module: str
    add: Callable[[], None]


def _fx() -> None:
    from ksurgeon.integrations.fx import register_with_fx

    register_with_fx()


def _swap() -> None:
    from ksurgeon.integrations.swap import register_with_swap_tensors

    register_with_swap_tensors()


def _flops() -> None:
    from ksurgeon.integrations.flops import register_with_flop_counter

    register_with_flop_counter()


def _transformers() -> None:
    from ksurgeon.integrations.hf_versions import require_transformers

    try:
        require_transformers()
    except VersionError as error:  # transformers itself is to go on working
        warnings.warn(str(error), stacklevel=2)
        return
    from ksurgeon.integrations.hf_register import register_with_transformers

    register_with_transformers()


def _peft() -> None:
    from ksurgeon.integrations.peft import register_with_peft

    register_with_peft()


HOOKS = (
    Hook("torch.fx", _fx),
    Hook("torch.utils", _swap),
    Hook("torch.utils.flop_counter", _flops),
    Hook("transformers.modeling_utils", _transformers),
    Hook("peft.tuners.lora.model", _peft),
)
"""All that ``import ksurgeon`` changes in other libraries; docs/transformers.md says what each does."""


def register() -> None:
    """Add ``HOOKS``, once, to the libraries that are imported, and to the others as soon as they are."""
    for hook in HOOKS:
        if hook not in _registered:
            _registered.add(hook)
            when_imported(hook.module, hook.add)


def register_unless_refused() -> None:
    """``register``, unless the environment says ``KSURGEON_NO_HOOKS=1``."""
    if os.environ.get("KSURGEON_NO_HOOKS", "") in ("", "0"):
        register()


def when_imported(name: str, action: Callable[[], None]) -> None:
    """Call ``action`` once the module ``name`` is imported: now, or right after its first import."""
    if name in sys.modules:
        action()
        return
    if not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())
    _waiting.setdefault(name, action)


_registered: set[Hook] = set()
_waiting: dict[str, Callable[[], None]] = {}


class _Watch(MetaPathFinder):
    """Finds nothing itself; lets the module's own loader be followed by what waits for the module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _waiting:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Followed(spec.loader, _waiting.pop(fullname))
                return spec
        return None


class _Followed(Loader):
    def __init__(self, loader: Any, action: Callable[[], None]) -> None:
        self._loader, self._action = loader, action

    def __getattr__(self, name: str) -> Any:  # of the loader: get_source, is_package, …
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._action()
