"""What the environment asks of ksurgeon, checked before any work."""

import os
from pathlib import Path

from ksurgeon.errors import KsurgeonError

__all__ = ["check_environment"]

_ALLOWED = {
    "KSURGEON_BACKEND": ("auto", "reference", "cpu", "cuda"),
    "KSURGEON_TUNE": ("", "0", "1"),
    "KSURGEON_NO_HOOKS": ("", "0", "1"),
    "KSURGEON_CPU_ISA": ("", "portable", "avx2", "avx512", "avx512_bf16"),
}


def check_environment() -> None:
    """Return if the variables of ksurgeon have values that they may have; needs no torch.

    Raises:
        KsurgeonError: one has another.
    """
    for name, allowed in _ALLOWED.items():
        value = os.environ.get(name)
        if value is None or value in allowed:
            continue
        remedy = "name one of these"
        if name == "KSURGEON_BACKEND":  # of other packages, which need not be imported for their names
            from importlib.metadata import entry_points

            allowed = (*allowed, *entry_points(group="ksurgeon.backends").names)
            remedy = "name one of these, or install the package that brings it"
        if value not in allowed:
            named = ", ".join(filter(None, allowed))
            raise KsurgeonError(f"{name}={value!r}: allowed are {named}; unset the variable or {remedy}")
    library = os.environ.get("KSURGEON_CPU_LIBRARY")
    if library and not Path(library).is_file():
        raise KsurgeonError(
            f"KSURGEON_CPU_LIBRARY={library!r}: there is no such file; unset the variable or correct it"
        )
