"""Which backends there are, and which one a device gets."""

import os
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from ksurgeon.errors import KsurgeonError
from ksurgeon.kernels import reference
from ksurgeon.kernels.backend import Backend, ExportBackend
from ksurgeon.kernels.chosen import CHOSEN
from ksurgeon.kernels.compiling import constant
from ksurgeon.plugins import load_plugins

__all__ = [
    "REFERENCE",
    "REGISTERED",
    "add",
    "available_backends",
    "best_backend",
    "broken_backends",
    "chosen_backend",
    "export_backend",
    "machine",
    "register_backend",
    "registered_backends",
]

GROUP = "ksurgeon.backends"
_Given = TypeVar("_Given", bound=Backend | type[Backend])


class Reference(Backend):
    """Plain PyTorch, which runs everywhere."""

    name = "reference"

    apply_chain = staticmethod(reference.apply_chain)  # type: ignore[assignment]

    def rows(self) -> Sequence[tuple[str, str, str]]:
        return ()  # there is nothing to tell


REFERENCE = Reference()

REGISTERED: dict[str, Backend] = {"reference": REFERENCE}


def register_backend(backend: _Given) -> _Given:
    """Let a backend multiply on the devices it is for; a decorator of classes, or called with an instance.

    Of several backends for a device the last one registered that is there is taken; ``KSURGEON_BACKEND``
    names another. Packages register theirs without being imported by an entry point in the group
    ``ksurgeon.backends``, whose name is that of the backend.

    Args:
        backend: a subclass of ``Backend`` that takes no arguments, or an instance of one.

    Returns:
        What was given.

    Raises:
        TypeError: it is no backend.
        ValueError: it has no name, is for no kind of device, or another backend has its name.

    Example:
        >>> @ksurgeon.register_backend
        ... class Xpu(ksurgeon.Backend):
        ...     name, device_types = "xpu", ("xpu",)
        ...     def multiply(self, x, factors, dim, bias, activation):
        ...         return xpu_kernels.chain(x, factors, dim, bias, activation)

        In the ``pyproject.toml`` of a package:

        >>> [project.entry-points."ksurgeon.backends"]
        ... xpu = "ksurgeon_xpu:Xpu"
    """
    add(backend)
    return backend


def add(backend: Backend | type[Backend]) -> Backend:
    """Register a backend without a look at entry points."""
    made = backend() if isinstance(backend, type) and issubclass(backend, Backend) else backend
    if not isinstance(made, Backend):
        raise TypeError(f"a subclass of ksurgeon.Backend or an instance of one is needed, got {backend!r}")
    if not made.name or not made.device_types:
        raise ValueError(f'{_class_of(made)} needs a name and device_types, as name = "xpu" and ("xpu",)')
    before = REGISTERED.get(made.name)
    if made.name == "auto" or (before is not None and _class_of(before) != _class_of(made)):
        holder = "KSURGEON_BACKEND itself" if before is None else _class_of(before)
        raise ValueError(f"the name {made.name!r} of {_class_of(made)} is that of {holder}; choose another")
    REGISTERED.pop(made.name, None)
    REGISTERED[made.name] = made
    CHOSEN.clear()
    return made


def _class_of(backend: Backend) -> str:
    return f"{type(backend).__module__}.{type(backend).__qualname__}"


def _add_from(name: str, loaded: Any) -> None:
    own = getattr(loaded, "name", None)
    if own != name:
        raise ValueError(f"its name is {own!r}, which has to be that of the entry point, {name!r}")
    if not any(loaded in (held, type(held)) for held in REGISTERED.values()):
        add(loaded)


def registered_backends() -> tuple[Backend, ...]:
    """Every backend, there or not, in the order they were registered; the reference comes first."""
    broken_backends()
    return tuple(REGISTERED.values())


def broken_backends() -> dict[str, str]:
    """Backends of other packages that cannot be used, by the name of their entry points, and why."""
    return load_plugins(GROUP, _add_from)


def available_backends() -> tuple[str, ...]:
    """Names of the backends that run on this machine, the reference first.

    Example:
        >>> ksurgeon.kernels.available_backends()
        ('reference', 'cpu')
    """
    return tuple(backend.name for backend in registered_backends() if not backend.why_missing())


@constant
def chosen_backend(device: torch.device | None = None) -> str:
    """Name of the backend for tensors on ``device``, by default the CPU: the one that ``KSURGEON_BACKEND``
    names if it is for such devices, or the last one registered that is there, or the reference.

    The variable counts as it is at the first product. What a backend cannot do is left to the reference.

    Raises:
        KsurgeonError: the variable names a backend that this installation does not have, or another asks for
            what a backend cannot do, as ``KSURGEON_CPU_LIBRARY`` and ``KSURGEON_CPU_ISA`` may.

    Example:
        >>> ksurgeon.kernels.chosen_backend(torch.device("cuda", 0))
        'cuda'
    """
    return _best(torch.device("cpu") if device is None else device)[0].name


def best_backend(device: torch.device) -> Backend:
    """The backend that ``chosen_backend`` names; tells once of those that are missing where that leaves the
    reference."""
    best, missing = _best(device)
    if missing and best is REFERENCE:
        warnings.warn(f"{device}: {'; '.join(missing)}; K-matrices use the reference there", stacklevel=3)
    return best


def _best(device: torch.device) -> tuple[Backend, list[str]]:
    backends, missing = registered_backends(), list[str]()
    for backend in backends:
        backend.check_environment()
    requested = os.environ.get("KSURGEON_BACKEND") or "auto"
    if requested != "auto":
        backends = (_requested(requested),)
    for backend in reversed(backends):
        if device.type in backend.device_types:
            reason = backend.why_missing(device)
            if not reason:
                return backend, missing
            missing.append(f"backend {backend.name}: {reason}")
    return REFERENCE, missing


def _requested(name: str) -> Backend:
    backend = REGISTERED.get(name)
    reason = broken_backends().get(name, "") if backend is None else backend.why_missing()
    if backend is None or reason:
        raise KsurgeonError(
            f"KSURGEON_BACKEND={name!r}: this installation has {', '.join(available_backends())}"
            f"{f' ({name}: {reason})' if reason else ''}; unset the variable, name one of these, or install "
            "the package that brings this backend"
        )
    return backend


def export_backend() -> ExportBackend | None:
    """What products are in exported programs that run by kernels; None where no backend has any."""
    found = [backend.for_export() for backend in registered_backends() if not backend.why_missing()]
    return next((backend for backend in reversed(found) if backend is not None), None)


def machine() -> str:
    """What the times of products on this machine depend on besides processor and device."""
    there = [backend for backend in registered_backends() if not backend.why_missing()]
    return ", ".join(f"{backend.name} {backend.machine()}".strip() for backend in there)
