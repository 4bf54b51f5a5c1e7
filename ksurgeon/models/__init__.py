"""Where models come from: timm, torchvision, transformers, a folder, or a Python function."""

from ksurgeon.models.names import parse
from ksurgeon.models.opening import LoadedModel, build, example_inputs, infer_source, open_model
from ksurgeon.models.source import Source

__all__ = ["LoadedModel", "Source", "build", "example_inputs", "infer_source", "open_model", "parse"]
