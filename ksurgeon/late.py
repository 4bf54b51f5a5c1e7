"""What a part is given by one above it, which it does not import: looked up here when it is first called."""

from functools import cache
from importlib import import_module
from typing import Any

__all__ = ["late"]

_PLACES = {
    "fit_on_data_": "ksurgeon.fit.on_data",  # for constructors of matrices and layers
    "descend_": "ksurgeon.fit.descent",
    "structure_schema": "ksurgeon.kmatrix.structures.reading",  # for pydantic's models that hold structures
    "as_html": "ksurgeon.report.conversion",  # for what a conversion shows of itself
    "as_text": "ksurgeon.report.conversion",
}


@cache
def late(name: str) -> Any:
    """The function of that name."""
    return getattr(import_module(_PLACES[name]), name)
