"""Runs the tests of the CPU backend with another build of ``_fast``: ``make sanitize`` gives the file.

No reference count may drift and nothing outside what was allocated may be touched, whatever Python passes;
tests that compile programs of their own are left out.
"""

import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

NAME = "ksurgeon.kernels.cpu._fast"


def main() -> int:
    loader = ExtensionFileLoader(NAME, sys.argv[1])
    spec = spec_from_loader(NAME, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[NAME] = module
    from ksurgeon.kernels.cpu import native

    assert native.fast is module, native.why_missing()
    tests = [str(path) for path in Path(__file__).parent.glob("test_cpu*.py")]
    chosen = "not opcheck and not compile and not instruction_set and not transform and not jit"
    return int(pytest.main([*tests, "-q", "-p", "no:cacheprovider", "-k", chosen]))


if __name__ == "__main__":
    sys.exit(main())
