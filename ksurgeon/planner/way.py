"""How a model is to be run where times count: threads, precision, runtime."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ksurgeon.errors import PlanError
from ksurgeon.export.formats import FORMATS
from ksurgeon.export.plain import plain
from ksurgeon.find.inputs import ExampleInputs, as_call
from ksurgeon.kernels import export_backend
from ksurgeon.kmatrix.int8 import quantized
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import Dense, Structure
from ksurgeon.surgery.build import build_layer
from ksurgeon.surgery.quantize import quantize
from ksurgeon.torch_private import pytree

__all__ = ["Precision", "Runtime", "Way"]

Precision = Literal["bfloat16", "int8"]
Runtime = Literal["eager", "compile", "onnx"]


@dataclass(frozen=True)
class Way:
    """How the model is to be run where times count.

    Attributes:
        threads: CPU threads; as many as PyTorch has now, if left out.
        precision: "bfloat16", as ``model.bfloat16()``; "int8", as ``quantize``; as the model is, if left out.
        runtime: "eager"; "compile", as ``torch.compile``; "onnx", ONNX Runtime, with the kernels' operators
            where there are kernels (see ``export_model``).
    """

    threads: int | None = None
    precision: Precision | None = None
    runtime: Runtime = "eager"

    def __str__(self) -> str:
        runtime = {"eager": "", "compile": ", compiled", "onnx": ", ONNX Runtime"}[self.runtime]
        return f"{self.precision or 'as it is'}{runtime}"

    @contextmanager
    def on_threads(self) -> Iterator[None]:
        """Inside, PyTorch has the threads."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def model(self, model: nn.Module) -> nn.Module:
        """The model so, a copy where that changes it."""
        if self.precision is None:
            return model
        changed = copy.deepcopy(model)
        if self.precision == "bfloat16":
            return changed.bfloat16()
        quantize(changed)
        return changed

    def inputs(self, inputs: Any) -> Any:
        """Inputs of the model so."""
        if self.precision != "bfloat16":
            return inputs

        def cast(x: Any) -> Any:
            return x.bfloat16() if isinstance(x, Tensor) and x.is_floating_point() else x

        return pytree.tree_map(cast, inputs)

    def layer(self, module: nn.Module, structure: Structure | None) -> nn.Module:
        """A site's layer so, or what would take its place."""
        as_it_is = structure is None
        layer = module if structure is None else build_layer(module, structure, "random")
        if self.precision == "bfloat16":
            return copy.deepcopy(layer).bfloat16()  # whose bias is the model's own
        if self.precision == "int8":
            layer = build_layer(module, Dense(), "exact") if as_it_is else layer
            if isinstance(layer.matrix, KMatrix):  # what is no chain stays as it is
                layer._modules["matrix"] = quantized(layer.matrix)
        return layer

    def run(self, module: nn.Module, inputs: ExampleInputs) -> Callable[[], object]:
        """What runs a module that is so on inputs of its own.

        Raises:
            PlanError: the runtime cannot run it; the message says why.
        """
        args, kwargs = as_call(inputs)
        if self.runtime == "eager":
            return partial(module.forward, *args, **kwargs)  # without the hooks that every layer would have
        try:
            if self.runtime == "onnx":
                called = partial(_in_onnx(module, inputs), inputs)
            else:
                called = partial(_compiled(module), *args, **kwargs)
            with torch.inference_mode():
                called()
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            raise PlanError(
                f"the runtime {self.runtime} cannot run {type(module).__name__}: "
                f"{type(error).__name__}: {first}"
            ) from error
        return called


def _compiled(module: nn.Module) -> Callable[..., object]:
    """Compiled by itself: dynamo gives up code that many layers share after a few of them."""

    def call(*args: Any, **kwargs: Any) -> object:
        return module(*args, **kwargs)

    own = FunctionType(call.__code__.replace(), globals(), closure=call.__closure__)
    compiled: Callable[..., object] = torch.compile(own)
    return compiled


def _in_onnx(module: nn.Module, inputs: ExampleInputs) -> Callable[[ExampleInputs], object]:
    chosen = FORMATS["onnx"]
    kernels = None if export_backend() is None else chosen.kernels
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        with plain(module, kernels is not None):
            (kernels or chosen).write(module, inputs, None, file)
        return (kernels or chosen).open(file)
