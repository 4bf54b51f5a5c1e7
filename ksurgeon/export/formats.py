"""One writer and one reader for each format."""

import os
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.errors import ExportError
from ksurgeon.export.operators import kernels_for_export, onnx_library
from ksurgeon.find.inputs import as_call, call_model, tensors_of
from ksurgeon.torch_private import compile_package, load_package

__all__ = ["FORMATS", "Format"]

Run = Callable[[Any], list[Tensor]]
"""Takes example inputs, gives the tensors that the program gives for them."""


@dataclass(frozen=True)
class Format:
    """How a program is written, and how it is opened again.

    ``write`` takes the model, example inputs, the dynamic shapes for torch.export, and the file; ``open``
    gives what runs the file on the CPU. ``suffix`` is that of its files. ``kernels`` is the same with the
    kernels' operators, where there is a way.
    """

    suffix: str
    write: Callable[[nn.Module, Any, Any, Path], None]
    open: Callable[[Path], Run]
    kernels: "Format | None" = None


def _write_onnx(model: nn.Module, inputs: Any, shapes: Any, file: Path, kernels: bool = False) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"{error}; pip install 'ksurgeon[export]'") from error
    args, kwargs = as_call(inputs)
    with _quiet():
        program = torch.onnx.export(
            model,
            args,
            kwargs=kwargs,
            dynamo=True,
            dynamic_shapes=shapes,
            verbose=False,
            optimize=True,
            output_names=_output_names(model, inputs),
            custom_translation_table=kernels_for_export().translations() if kernels else None,
        )
    assert program is not None
    program.save(str(file))


def _output_names(model: nn.Module, inputs: Any) -> list[str] | None:
    """Those of a model's outputs that have names, as models of transformers' have; None where they have none.

    What is in a sequence is numbered: ``past_key_values.0``.
    """
    outputs = call_model(model, inputs)
    if not isinstance(outputs, Mapping):
        return None
    return [
        name if tensor is value else f"{name}.{number}"
        for name, value in outputs.items()
        for number, tensor in enumerate(tensors_of(value))
    ]


def _open_onnx(file: Path, kernels: bool = False) -> Run:
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError(f"{error}; pip install 'ksurgeon[export]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    if kernels:
        options.register_custom_ops_library(onnx_library())
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(inputs: Any) -> list[Tensor]:
        args, kwargs = as_call(inputs)
        given: Mapping[str, Tensor]
        given = kwargs if kwargs else dict(zip(names, tensors_of(args), strict=False))
        arrays = {name: given[name].numpy() for name in names}
        return [torch.from_numpy(array) for array in session.run(None, arrays)]

    return run


def _program(model: nn.Module, inputs: Any, shapes: Any) -> torch.export.ExportedProgram:
    args, kwargs = as_call(inputs)
    return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


def _write_pt2(model: nn.Module, inputs: Any, shapes: Any, file: Path) -> None:
    torch.export.save(_program(model, inputs, shapes), file)


def _open_pt2(file: Path) -> Run:
    module = torch.export.load(file).module()
    return lambda inputs: _call(module, inputs)


def _write_aoti(model: nn.Module, inputs: Any, shapes: Any, file: Path) -> None:
    compile_package(_program(model, inputs, shapes), file)


def _open_aoti(file: Path) -> Run:
    module = load_package(file)
    return lambda inputs: _call(module, inputs)


def _call(module: Any, inputs: Any) -> list[Tensor]:
    args, kwargs = as_call(inputs)
    with torch.no_grad():
        return tensors_of(module(*args, **kwargs))


@contextmanager
def _quiet() -> Any:
    """The exporter prints its progress to standard output, and warns of what it works around itself."""
    import contextlib
    import logging
    import warnings

    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


FORMATS: dict[str, Format] = {
    "onnx": Format(
        ".onnx",
        _write_onnx,
        _open_onnx,
        Format(".onnx", partial(_write_onnx, kernels=True), partial(_open_onnx, kernels=True)),
    ),
    "pt2": Format(".pt2", _write_pt2, _open_pt2),
    "aoti": Format(".pt2", _write_aoti, _open_aoti),
}
