"""The kernels' operators, which another runtime finds in a library."""

from ksurgeon.errors import ExportError
from ksurgeon.kernels import export_backend, registered_backends
from ksurgeon.kernels.backend import ExportBackend

__all__ = ["kernels_for_export", "onnx_library"]


def onnx_library() -> str:
    """The library of the operators that ``export_model(…, kernels=True)`` writes, for ONNX Runtime 1.17 on.

    It needs neither ksurgeon nor PyTorch: it can be copied to where the program runs, on the same kind of
    processor and system.

    Raises:
        ExportError: the kernels were not compiled.

    Example:
        >>> options = onnxruntime.SessionOptions()
        >>> options.register_custom_ops_library(ksurgeon.onnx_library())
        >>> session = onnxruntime.InferenceSession("model.onnx", options)
    """
    return kernels_for_export().library()


def kernels_for_export() -> ExportBackend:
    """What products are in programs that run by kernels.

    Raises:
        ExportError: no backend that is there has operators for that.
    """
    backend = export_backend()
    if backend is None:
        found = {backend.name: backend.why_missing() for backend in registered_backends()}
        reasons = [f"{name}: {reason}" for name, reason in found.items() if reason]
        raise ExportError(f"the kernels are not there ({'; '.join(reasons)}); export without kernels")
    return backend
