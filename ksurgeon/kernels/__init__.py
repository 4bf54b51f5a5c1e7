"""One operation, a chain of Kronecker-sparse factors applied to vectors, on every backend."""

from ksurgeon.kernels.backend import Backend
from ksurgeon.kernels.cpu.backend import CpuBackend
from ksurgeon.kernels.cuda.backend import CudaBackend
from ksurgeon.kernels.dispatch import apply_chain, at_once, beside, few_rows, operators_only, reference_only
from ksurgeon.kernels.registry import (
    add,
    available_backends,
    broken_backends,
    chosen_backend,
    export_backend,
    machine,
    register_backend,
    registered_backends,
)

__all__ = [
    "Backend",
    "apply_chain",
    "at_once",
    "available_backends",
    "beside",
    "broken_backends",
    "chosen_backend",
    "export_backend",
    "few_rows",
    "machine",
    "operators_only",
    "reference_only",
    "register_backend",
    "registered_backends",
]

for _own in (CpuBackend, CudaBackend):
    add(_own)
