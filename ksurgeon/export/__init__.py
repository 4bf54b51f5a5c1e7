"""Converted models as programs that run without ksurgeon: ONNX, torch.export and AOTInductor."""

from ksurgeon.export.operators import onnx_library
from ksurgeon.export.program import FORMATS, Exported, export_model

__all__ = ["FORMATS", "Exported", "export_model", "onnx_library"]
