"""The transformers that ksurgeon needs."""

import transformers

from ksurgeon.errors import VersionError

__all__ = ["OLDEST", "require_transformers"]

OLDEST = "5.17"


def require_transformers() -> None:
    """Raise unless transformers is new enough.

    Raises:
        VersionError: it is older than ``OLDEST``.
    """
    installed = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if installed < tuple(map(int, OLDEST.split("."))):
        raise VersionError(
            f"ksurgeon needs transformers {OLDEST} or later to load converted models, and "
            f"{transformers.__version__} is installed: pip install -U 'transformers>={OLDEST}'"
        )
