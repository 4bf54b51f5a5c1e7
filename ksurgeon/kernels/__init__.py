"""One operation, a chain of Kronecker-sparse factors applied to vectors, on every backend."""

from ksurgeon.kernels.dispatch import (
    apply_chain,
    at_once,
    available_backends,
    beside,
    chosen_backend,
    few_rows,
    operators_only,
    reference_only,
)

__all__ = [
    "apply_chain",
    "at_once",
    "available_backends",
    "beside",
    "chosen_backend",
    "few_rows",
    "operators_only",
    "reference_only",
]
