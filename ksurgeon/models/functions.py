"""Python functions that a user names: ``package.module:function`` or ``FILE.py:function``."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ksurgeon.errors import KsurgeonError

__all__ = ["find_function", "working_directory"]


def find_function(name: str, error: type[KsurgeonError], base: Path | None = None) -> Callable[..., Any]:
    """The function of that name; the working directory is searched for the module first.

    Args:
        name: ``package.module:function``, or ``FILE.py:function`` with a path relative to ``base``.
        error: what is raised where there is none.
        base: a folder; the working directory if left out.
    """
    place, colon, function_name = name.rpartition(":")
    if not colon or not place or not function_name.isidentifier():
        raise error(f'"{name}" is no function; expected package.module:function or FILE.py:function')
    try:
        module = _from_file((base or Path.cwd()) / place) if place.endswith(".py") else _imported(place)
    except Exception as problem:
        raise error(
            f'"{name}": importing {place} from {base or Path.cwd()} or the installed packages raised '
            f"{type(problem).__name__}: {problem}"
        ) from problem
    function = getattr(module, function_name, None)
    if not callable(function):
        raise error(f'"{name}": {place} has no function "{function_name}"')
    return function


@contextmanager
def working_directory() -> Iterator[None]:
    """Inside, modules are searched for in the working directory first."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _imported(name: str) -> ModuleType:
    with working_directory():
        return importlib.import_module(name)


def _from_file(file: Path) -> ModuleType:
    name = f"_ksurgeon_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
