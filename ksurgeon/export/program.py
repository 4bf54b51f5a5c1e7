"""Write a model as a program, and prove that the program does what the model does."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ksurgeon.errors import ExportError, FolderError, KsurgeonError
from ksurgeon.export.formats import FORMATS
from ksurgeon.export.plain import plain
from ksurgeon.export.shapes import attempts, for_export, fresh, variants
from ksurgeon.find.inputs import ExampleInputs, call_model, is_offloaded, tensors_of
from ksurgeon.find.unchanged import example_run

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
    model: nn.Module, file: str | Path, example_inputs: ExampleInputs, *, to: str | None = None
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

    Raises:
        ExportError: the format or its library is not known or not there, the exporter cannot read the model's
            code, or the program's outputs differ by more than 1e-4 of the largest.
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
    inputs = for_export(example_inputs)
    with example_run(model):
        call_model(model, inputs)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export.", dir=target.parent) as folder:
            part = Path(folder) / target.name
            opened = _write(model, inputs, format_, part)
            difference = _compare(model, inputs, opened, FORMATS[format_].open(part))
            for written in Path(folder).iterdir():  # ONNX above 2 GB keeps its tensors beside it
                os.replace(written, target.parent / written.name)
    except KsurgeonError:
        raise
    except OSError as error:
        raise FolderError(f"{target} could not be written: {error.strerror or error}") from error
    return Exported(
        target, format_, opened, target.stat().st_size, difference, inputs, FORMATS[format_].open(target)
    )


def _write(model: nn.Module, inputs: ExampleInputs, format_: str, file: Path) -> str:
    """What was left open in the first attempt that succeeded."""
    failure: Exception | None = None
    with plain(model):
        for opened, shapes in attempts(inputs):
            try:
                FORMATS[format_].write(model, fresh(inputs), shapes, file)
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
    largest = 0.0
    for given in variants(inputs, opened):
        with example_run(model), torch.no_grad():
            wanted = tensors_of(call_model(model, given))
        got = run(given)
        if [tuple(t.shape) for t in got] != [tuple(t.shape) for t in wanted]:
            raise ExportError(
                f"the program gives outputs of shapes {[tuple(t.shape) for t in got]} instead of "
                f"{[tuple(t.shape) for t in wanted]}"
            )
        for mine, other in zip(wanted, got, strict=True):
            if mine.numel():
                scale = max(1.0, float(mine.double().abs().max()))
                largest = max(largest, float((mine.double() - other.double()).abs().max()) / scale)
    if not largest <= TOLERANCE:
        raise ExportError(
            f"the program's outputs differ from the model's by {largest:.1e} (at most {TOLERANCE:.0e} "
            "was expected); nothing was written"
        )
    return largest
