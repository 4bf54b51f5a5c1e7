"""The kernels' operators in ONNX, which ONNX Runtime finds in the compiled library."""

from collections.abc import Callable, Sequence
from typing import Any

from ksurgeon.kernels.cpu.int8_calls import int8_chain
from ksurgeon.kernels.cpu.native import ACTIVATIONS
from ksurgeon.kernels.cpu.ops import chain_inference

__all__ = ["translations"]


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What makes a node of each operator of PyTorch; onnx.cpp tells of the nodes."""
    of_rows, of_columns, of_int8 = _node("Chain"), _node("Columns"), _node("Int8Chain", "first")

    def floating(
        x: Any, factors: Sequence[Any], bias: Any = None, dim: int = -1, activation: str | None = None
    ) -> Any:
        node = of_columns if dim == 1 else of_rows
        return node(x, *factors, *_given(bias), **_facts(bias, activation))

    def quantized(
        x: Any,
        first: Sequence[Any],
        second: Sequence[Any],
        bias: Any = None,
        activation: str | None = None,
        dim: int = -1,
    ) -> Any:
        facts = {"first": len(first) // 2, **_facts(bias, activation)}
        return of_int8(x, *first, *second, *_given(bias), **facts)

    return {chain_inference: floating, int8_chain: quantized}


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
