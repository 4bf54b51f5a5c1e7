"""The transformers that ksurgeon needs."""

import transformers

from ksurgeon.errors import VersionError

__all__ = ["OLDEST", "is_too_old", "require_transformers"]

OLDEST = "5.17"


def is_too_old() -> bool:
    """Whether the transformers that is installed lacks what ksurgeon registers with."""
    installed = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return installed < tuple(map(int, OLDEST.split(".")))


def require_transformers() -> None:
    """Raise unless transformers is new enough.

    Raises:
        VersionError: it is older than ``OLDEST``.
    """
    if is_too_old():
        raise VersionError(
            f"ksurgeon needs transformers {OLDEST} or later to load converted models, and "
            f"{transformers.__version__} is installed: pip install -U 'transformers>={OLDEST}'"
        )
