"""Models that a Python function makes: ``package.module:function``."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from ksurgeon.errors import ModelNotFoundError
from ksurgeon.models.source import Source

__all__ = ["build"]


def build(source: Source) -> nn.Module:
    """What the function returns when it is called with ``source.options``.

    The working directory is searched for the module first.

    Raises:
        ModelNotFoundError: the module or function is not there, it raised, or it returned no module.
    """
    module_name, _, function_name = source.name.partition(":")
    with _working_directory():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise ModelNotFoundError(
                f'"{source.name}": importing {module_name} from {Path.cwd()} or the installed packages '
                f"raised {_show(error)}"
            ) from error
        function = getattr(module, function_name, None)
        if not callable(function):
            raise ModelNotFoundError(f'"{source.name}": {module_name} has no function "{function_name}"')
        try:
            model = function(**source.options)
        except Exception as error:
            raise ModelNotFoundError(f'"{source.name}": the function raised {_show(error)}') from error
    if not isinstance(model, nn.Module):
        raise ModelNotFoundError(
            f'"{source.name}" returned {type(model).__name__}; expected a torch.nn.Module'
        )
    return model


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
