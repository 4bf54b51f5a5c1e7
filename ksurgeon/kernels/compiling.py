"""What ``torch.compile`` is to call, not to look into."""

from collections.abc import Callable
from typing import TypeVar

__all__ = ["constant"]

_Function = TypeVar("_Function", bound=Callable[..., object])


def constant(function: _Function) -> _Function:
    """Mark a function whose result a trace may take as it is: ``torch.compiler.assume_constant_result``,
    which would import the compiler at once."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
