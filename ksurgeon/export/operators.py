"""The kernels' operators in ONNX, which ONNX Runtime finds in the compiled library."""

from collections.abc import Callable, Sequence
from typing import Any

from ksurgeon.errors import ExportError
from ksurgeon.kernels import cpu, int8
from ksurgeon.kernels.cpu.native import ACTIVATIONS, library

__all__ = ["onnx_library", "translations"]


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
    if not cpu.is_available():
        raise ExportError(f"the kernels are not there: {cpu.why_missing()}; export without kernels")
    return str(library()._name)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What makes a node of each operator of PyTorch; onnx.cpp tells of the nodes."""
    of_rows, of_columns, of_int8 = _node("Chain"), _node("Columns"), _node("Int8Chain", "first")

    def chain(
        x: Any, factors: Sequence[Any], bias: Any = None, dim: int = -1, activation: str | None = None
    ) -> Any:
        node = of_columns if dim == 1 else of_rows
        return node(x, *factors, *_given(bias), **_facts(bias, activation))

    def int8_chain(
        x: Any,
        first: Sequence[Any],
        second: Sequence[Any],
        bias: Any = None,
        activation: str | None = None,
        dim: int = -1,
    ) -> Any:
        facts = {"first": len(first) // 2, **_facts(bias, activation)}
        return of_int8(x, *first, *second, *_given(bias), **facts)

    return {cpu.chain_inference: chain, int8.int8_chain: int8_chain}


def _node(name: str, *more: str) -> Any:
    """What adds a node of any number of inputs of either type; integers are its attributes."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    floats, any_type = "tensor(float)", ["tensor(float)", "tensor(int8)"]
    variadic = OpSchema.FormalParameterOption.Variadic
    schema = OpSchema(
        name,
        "ksurgeon",
        1,
        inputs=[
            OpSchema.FormalParameter("inputs", "T", param_option=variadic, is_homogeneous=False),
        ],
        outputs=[OpSchema.FormalParameter("y", floats)],
        type_constraints=[("T", any_type, "")],
        attributes=[OpSchema.Attribute(k, OpSchema.AttrType.INT) for k in (*more, "bias", "activation")],
    )
    return Op(Opset("ksurgeon", 1), name, schema)


def _given(bias: Any) -> tuple[Any, ...]:
    return () if bias is None else (bias,)


def _facts(bias: Any, activation: str | None) -> dict[str, int]:
    return {"bias": int(bias is not None), "activation": ACTIVATIONS[activation]}
