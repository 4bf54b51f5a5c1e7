"""Runtimes other than PyTorch that a model can be run in: ONNX Runtime, OpenVINO, CTranslate2.

OpenVINO and CTranslate2 run the dense model alone: what a user could take in our place.
"""

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, from_numpy, nn

from benchmarks.workers import Maker
from ksurgeon import export_model, onnx_library, quantize

__all__ = ["in_ctranslate2", "in_onnx", "in_openvino", "is_there", "onnx_session", "run_named"]

Inputs = Callable[[int], Any]
"""A model's inputs, from a batch size."""


def is_there(way: str) -> bool:
    """Whether the package of a runtime is installed; those of PyTorch and ONNX Runtime are."""
    package = {"OpenVINO": "openvino", "CTranslate2": "ctranslate2"}.get(way.split(" ")[0])
    return package is None or find_spec(package) is not None


def _arrays(names: list[str], given: Any) -> dict[str, Any]:
    """Inputs by the names that a program gives them; a tensor alone is the only one."""
    return {name: (given if isinstance(given, Tensor) else given[name]).numpy() for name in names}


def in_onnx(model: nn.Module, inputs: Inputs, precision: str, kernels: bool) -> Maker:
    """ONNX Runtime; int8 by the operators of our layers with ``kernels``, without by its own quantization."""
    file = _in_file(model, inputs(2), precision, kernels)

    def make(batch: int, threads: int) -> Callable[[], object]:
        session = onnx_session(file, threads, kernels)
        names = [of.name for of in session.get_inputs()]
        arrays = _arrays(names, inputs(batch))
        return lambda: session.run(None, arrays)

    return make


def _in_file(model: nn.Module, inputs: Any, precision: str, kernels: bool) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    folder = Path(tempfile.mkdtemp())
    file = folder / "model.onnx"
    if precision == "int8" and kernels:
        quantize(model)
    export_model(model, file, inputs, kernels=kernels)
    if precision == "int8" and not kernels:
        quantize_dynamic(file, folder / "int8.onnx")
        file = folder / "int8.onnx"
    return file


def onnx_session(file: Path, threads: int, kernels: bool) -> Any:
    """A session of ONNX Runtime, with our operators where ``kernels`` says so."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if kernels:
        options.register_custom_ops_library(onnx_library())
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def run_named(
    model: nn.Module, inputs: dict[str, Tensor], precision: str, threads: int, kernels: bool
) -> Callable[..., list[Tensor]]:
    """What runs a module with inputs of these shapes in ONNX Runtime: tensors in that order, and tensors."""
    session = onnx_session(_in_file(model, inputs, precision, kernels), threads, kernels)
    taken = {of.name for of in session.get_inputs()}

    def run(*given: Tensor) -> list[Tensor]:
        arrays = {n: x.numpy() for n, x in zip(inputs, given, strict=True) if n in taken}
        return [from_numpy(array) for array in session.run(None, arrays)]

    return run


def in_openvino(model: nn.Module, inputs: Inputs, precision: str) -> Maker:
    """OpenVINO in float32 or bfloat16, from the same ONNX file."""
    import openvino

    file = Path(tempfile.mkdtemp()) / "model.onnx"
    export_model(model, file, inputs(2))
    core = openvino.Core()
    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]

    def make(batch: int, threads: int) -> Callable[[], object]:
        how = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = core.compile_model(core.read_model(file), "CPU", how)
        request = compiled.create_infer_request()
        arrays = _arrays([of.get_any_name() for of in compiled.inputs], inputs(batch))
        return lambda: request.infer(arrays)

    return make


def in_ctranslate2(folder: Path, inputs: Inputs, precision: str) -> Maker:
    """CTranslate2's own encoder, in float32 or int8, of a model of transformers in a folder."""
    import ctranslate2

    place = Path(tempfile.mkdtemp()) / "model"
    ctranslate2.converters.TransformersConverter(str(folder)).convert(str(place))

    def make(batch: int, threads: int) -> Callable[[], object]:
        encoder = ctranslate2.Encoder(
            str(place), device="cpu", compute_type=precision, inter_threads=1, intra_threads=threads
        )
        given = inputs(batch)
        texts = [
            ids[:length]
            for ids, length in zip(
                given["input_ids"].tolist(), given["attention_mask"].sum(1).tolist(), strict=True
            )
        ]
        return lambda: encoder.forward_batch(texts)

    return make
