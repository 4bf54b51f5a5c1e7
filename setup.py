"""Packages of the wheel: ksurgeon itself, the top-level folders of data under names of their own, and the
optional shared library of the ``cpu`` backend.

The library is plain C++17 without PyTorch's or Python's headers, so that one build serves every version of
both. Where it cannot be compiled the installation goes on without it.
"""

from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

DATA = {"ksurgeon._rules": "rules", "ksurgeon._recipes": "recipes"}
SOURCE = Path("ksurgeon/kernels/cpu/src")


class BuildLibrary(build_ext):
    """Builds a shared library that is no Python module: it has no ``PyInit`` to export."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return list(ext.export_symbols)


chain = Extension(
    "ksurgeon.kernels.cpu._chain",
    sources=sorted(path.as_posix() for path in SOURCE.glob("*.cpp")),
    depends=sorted(path.as_posix() for path in SOURCE.glob("*.h")),
    extra_compile_args=[
        "-O3",
        "-g0",
        "-std=c++17",
        "-fvisibility=hidden",
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-Wno-maybe-uninitialized",
        "-pthread",
    ],
    extra_link_args=["-pthread", "-ldl"],
    language="c++",
    optional=True,
)

# A thin shell around it with CPython's headers: a product of few vectors takes half the time.
fast = Extension(
    "ksurgeon.kernels.cpu._fast",
    sources=[(SOURCE / "fast.c").as_posix()],
    depends=[(SOURCE / name).as_posix() for name in ("record.h", "tensors.h")],
    optional=True,
)

setup(
    packages=[*find_packages(include=["ksurgeon", "ksurgeon.*"]), *DATA],
    package_dir=DATA,
    package_data={"ksurgeon": ["py.typed"], "ksurgeon._rules": ["*.toml"], "ksurgeon._recipes": ["*"]},
    exclude_package_data={"ksurgeon.kernels.cpu": ["src/*"]},
    ext_modules=[chain, fast],
    cmdclass={"build_ext": BuildLibrary},
)
