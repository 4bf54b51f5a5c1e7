"""Find linear maps in a model: look, never touch.

``ksurgeon.find`` is this package and the function ``find`` in one: importing a package binds its name in
``ksurgeon``, so the package itself answers the call.
"""

import sys
from types import ModuleType
from typing import Any

from ksurgeon.find.finder import Finder, find, open_finder
from ksurgeon.find.layer_kinds import Layer
from ksurgeon.find.match import Match
from ksurgeon.find.site import Site

__all__ = ["Finder", "Layer", "Match", "Site", "find", "open_finder"]


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> list[Site]:
        return find(*args, **kwargs)


_Callable.__call__.__doc__ = find.__doc__
_Callable.__call__.__wrapped__ = find  # type: ignore[attr-defined]
sys.modules[__name__].__class__ = _Callable
