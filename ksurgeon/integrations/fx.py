"""K-modules in graphs of ``torch.fx``: nodes of their own, like the layers of torch.nn that they replace."""

import functools
from typing import Any

from torch import fx, nn

__all__ = ["register_with_fx"]

_HOMES = ("ksurgeon.kmatrix.", "ksurgeon.frontend.")


def register_with_fx() -> None:
    """Let symbolic traces, such as that of torchvision's ``create_feature_extractor``, call K-modules.

    Their code asks for sizes, and chooses kernels by them, which no symbolic value answers. A tracer that
    decides for itself what it calls does so as ever.
    """
    original = fx.Tracer.is_leaf_module

    @functools.wraps(original)
    def is_leaf_module(self: Any, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).__module__.startswith(_HOMES) or original(self, m, module_qualified_name)

    fx.Tracer.is_leaf_module = is_leaf_module  # type: ignore[method-assign]
