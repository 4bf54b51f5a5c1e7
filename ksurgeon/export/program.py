"""Write a model as a program, and prove that the program does what the model does."""

import os
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ksurgeon.errors import ExportError, FolderError, KsurgeonError
from ksurgeon.export.formats import FORMATS, Format
from ksurgeon.export.operators import onnx_library
from ksurgeon.export.plain import plain
from ksurgeon.export.shapes import attempts, for_export, fresh, variants
from ksurgeon.find.inputs import ExampleInputs, call_model, is_offloaded, tensors_of
from ksurgeon.find.unchanged import example_run
from ksurgeon.kernels import reference_only
from ksurgeon.kmatrix.int8 import Int8Matrix
from ksurgeon.kmatrix.int8_tied import TiedInt8Linear
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix

__all__ = ["FORMATS", "Exported", "export_model"]

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """A program that was written.

    Attributes:
        file: where it is.
        to: its format.
        opened: the dimensions of the inputs that may have other sizes: "batch and length", "batch" or
        "nothing".
        size: bytes.
        largest_error: largest difference from the model's outputs, relative to the largest entry of each.
        example_inputs: what the program was exported with.
        run: takes example inputs, gives the program's output tensors.
    """

    file: Path
    to: str
    opened: str
    size: int
    largest_error: float
    example_inputs: ExampleInputs
    run: Callable[[ExampleInputs], list[Tensor]]


def export_model(
    model: nn.Module,
    file: str | Path,
    example_inputs: ExampleInputs,
    *,
    to: str | None = None,
    kernels: bool = False,
) -> Exported:
    """Write a model, converted or not, as a program that needs no ksurgeon, and compare the two.

    The factors of K-matrices are merged and become plain matrix products. The batch is left open, and for
    text its length, where the model's own code allows it. The file appears once its program was run on
    several inputs and gave what the model gives; what was there before stays until then.

    Args:
        model: any module on the CPU; it is left as it is.
        file: where to write; ``.onnx`` or ``.pt2``.
        example_inputs: as for ``find``.
        to: "onnx" (for onnxruntime and others), "pt2" (torch.export), "aoti" (compiled by AOTInductor); by
            the file's suffix if left out.
        kernels: let K-layers, linear ones and convolutions, be operators of ksurgeon's library (see
            ``onnx_library``), which runs them by its kernels, quantized ones in int8; for ONNX Runtime alone,
            and for float32. Without it int8 weights are dequantized.

    Raises:
        ExportError: the format or its library is not known or not there, the exporter cannot read the model's
            code, or the program's outputs differ by more than 1e-4 of the largest; of a model in int8, which
            rounding moves more, by more than twice what quantizing the inputs of its layers changes.
        InputError: the model does not run on the inputs.
        FolderError: the file cannot be written.
    """
    target = Path(file)
    format_ = to or next((name for name, f in FORMATS.items() if f.suffix == target.suffix), "")
    if format_ not in FORMATS:
        raise ExportError(
            f"formats are {', '.join(FORMATS)}, got {format_ or target.suffix or target.name!r}"
        )
    if target.is_dir() or target.suffix != FORMATS[format_].suffix:
        raise FolderError(f"{target}: give a file whose name ends in {FORMATS[format_].suffix}")
    if is_offloaded(model):
        raise ExportError(
            "accelerate keeps weights of this model elsewhere; bring them back first: "
            "accelerate.hooks.remove_hook_from_module(model, recurse=True)"
        )
    chosen = FORMATS[format_]
    if kernels:
        onnx_library()
        if chosen.kernels is None:
            raise ExportError(f"{format_} has no kernels, only onnx has; leave kernels out")
        _require_float32(model)
        chosen = chosen.kernels
    inputs = for_export(example_inputs)
    with example_run(model):
        call_model(model, inputs)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export.", dir=target.parent) as folder:
            part = Path(folder) / target.name
            opened = _write(model, inputs, format_, chosen, part)
            with nullcontext() if kernels else reference_only():
                difference = _compare(model, inputs, opened, chosen.open(part))
            for written in Path(folder).iterdir():  # ONNX above 2 GB keeps its tensors beside it
                os.replace(written, target.parent / written.name)
    except KsurgeonError:
        raise
    except OSError as error:
        raise FolderError(f"{target} could not be written: {error.strerror or error}") from error
    return Exported(target, format_, opened, target.stat().st_size, difference, inputs, chosen.open(target))


def _require_float32(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, (KLinear, KMatrix, Int8Matrix)):
            held = (*module.parameters(), *module.buffers())
            others = {t.dtype for t in held if t.is_floating_point() or t.is_complex()} - {torch.float32}
            if others:
                raise ExportError(
                    f"the kernels' operators are for float32, and {path or 'the model'} has {others.pop()}: "
                    "export model.float(), or without kernels"
                )


def _write(model: nn.Module, inputs: ExampleInputs, format_: str, chosen: Format, file: Path) -> str:
    """What was left open in the first attempt that succeeded."""
    failure: Exception | None = None
    with plain(model, chosen is FORMATS[format_].kernels):
        for opened, shapes in attempts(inputs):
            try:
                chosen.write(model, fresh(inputs), shapes, file)
            except KsurgeonError:
                raise
            except Exception as error:
                failure = error
            else:
                return opened
    first = str(failure).strip().partition("\n")[0]
    raise ExportError(
        f"{type(model).__name__} cannot be exported to {format_}: {type(failure).__name__}: {first}"
    ) from failure


def _compare(
    model: nn.Module, inputs: ExampleInputs, opened: str, run: Callable[[ExampleInputs], list[Tensor]]
) -> float:
    largest, allowed = 0.0, TOLERANCE
    for given in variants(inputs, opened):
        wanted, got = _outputs(model, given), run(given)
        if [tuple(t.shape) for t in got] != [tuple(t.shape) for t in wanted]:
            raise ExportError(
                f"the program gives outputs of shapes {[tuple(t.shape) for t in got]} instead of "
                f"{[tuple(t.shape) for t in wanted]}"
            )
        largest = max(largest, _difference(wanted, got))
        if any(isinstance(module, (Int8Matrix, TiedInt8Linear)) for module in model.modules()):
            # Rounding elsewhere moves what is rounded to integers by a step here and there, which later
            # layers make as large as all of that rounding is.
            with reference_only():
                allowed = max(allowed, 2 * _difference(wanted, _outputs(model, given)))
    if not largest <= allowed:
        raise ExportError(
            f"the program's outputs differ from the model's by {largest:.1e} (at most {allowed:.0e} "
            "was expected); nothing was written"
        )
    return largest


def _outputs(model: nn.Module, given: ExampleInputs) -> list[Tensor]:
    with example_run(model), torch.no_grad():
        return tensors_of(call_model(model, given))


def _difference(wanted: list[Tensor], got: list[Tensor]) -> float:
    """The largest one, relative to the largest entry of each tensor, or to 1."""
    largest = 0.0
    for mine, other in zip(wanted, got, strict=True):
        if mine.numel():
            scale = max(1.0, float(mine.double().abs().max()))
            largest = max(largest, float((mine.double() - other.double()).abs().max()) / scale)
    return largest
