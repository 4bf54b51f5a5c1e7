"""Models that a Python function makes: ``package.module:function``."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ksurgeon.errors import ModelNotFoundError
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
    module_name, _, function_name = name.partition(":")
    with _working_directory():
        return _called(module_name, function_name, options or {})


def named_function(name: str) -> Callable[..., Any]:
    """The function ``package.module:function`` itself; raises as ``call_named`` does."""
    module_name, _, function_name = name.partition(":")
    with _working_directory():
        return _function(module_name, function_name)


def _called(module_name: str, function_name: str, options: Mapping[str, Any]) -> Any:
    function = _function(module_name, function_name)
    try:
        return function(**options)
    except Exception as error:
        raise ModelNotFoundError(
            f'"{module_name}:{function_name}": the function raised {_show(error)}'
        ) from error


def _function(module_name: str, function_name: str) -> Callable[..., Any]:
    name = f"{module_name}:{function_name}"
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ModelNotFoundError(
            f'"{name}": importing {module_name} from {Path.cwd()} or the installed packages '
            f"raised {_show(error)}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ModelNotFoundError(f'"{name}": {module_name} has no function "{function_name}"')
    return function


@contextmanager
def _working_directory() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _show(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
