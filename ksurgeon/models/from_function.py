"""Models that a Python function makes: ``package.module:function``."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ksurgeon.errors import ModelNotFoundError
from ksurgeon.models.functions import find_function, working_directory
from ksurgeon.models.source import Source

__all__ = ["build", "call_named", "named_function"]


def build(source: Source) -> nn.Module:
    """What the function returns when it is called with ``source.options``.

    The working directory is searched for the module first.

    Raises:
        ModelNotFoundError: the module or function is not there, it raised, or it returned no module.
    """
    model = call_named(source.name, source.options)
    if not isinstance(model, nn.Module):
        raise ModelNotFoundError(
            f'"{source.name}" returned {type(model).__name__}; expected a torch.nn.Module'
        )
    return model


def call_named(name: str, options: Mapping[str, Any] | None = None) -> Any:
    """What the function ``package.module:function`` returns; the working directory is searched first.

    Raises:
        ModelNotFoundError: the module or function is not there, or it raised.
    """
    function = find_function(name, ModelNotFoundError)
    with working_directory():
        try:
            return function(**(options or {}))
        except Exception as error:
            raise ModelNotFoundError(
                f'"{name}": the function raised {type(error).__name__}: {error}'
            ) from error


def named_function(name: str) -> Callable[..., Any]:
    """The function ``package.module:function`` itself; raises as ``call_named`` does."""
    return find_function(name, ModelNotFoundError)
