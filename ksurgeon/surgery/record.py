"""The record: what was done to a model, complete enough to do it again to a fresh architecture."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ksurgeon.errors import RecordError
from ksurgeon.find.inputs import ExampleInputs, as_call
from ksurgeon.kmatrix.structures import Structure
from ksurgeon.models.source import Source

__all__ = [
    "Found",
    "Operation",
    "Outcome",
    "Record",
    "Training",
    "attach",
    "describe_inputs",
    "inputs_from",
    "listeners",
    "record_of",
    "signature",
]

_ATTRIBUTE = "_ksurgeon_record"


class _Base(BaseModel):
    model_config = ConfigDict(extra="forbid", serialize_by_alias=True, validate_by_name=True)


class Operation(_Base):
    """One replaced site; ``form`` tells what stands there: a K-module, or after a revert a dense layer.

    ``activation`` is what the K-module applies in place of the module at ``activation_path``.
    """

    path: str
    kind: str
    form: Literal["kaleidoscope", "dense"] = "kaleidoscope"
    structure: Structure
    start: str
    permutation: tuple[int, ...] | None = None
    dim: int | None = None
    ndim: int = 0
    groups: int = 1
    facts: dict[str, Any] = {}
    parameter: str = ""
    parts: int = 1
    stage: int = 0
    parameters_before: int = 0
    parameters_after: int = 0
    weight_error: float | None = None
    output_error: float | None = None
    activation: str | None = None
    activation_path: str = ""


class Found(_Base):
    """Sites of one kind: how many there were, how many were replaced, and why the others were left."""

    kind: str
    found: int
    replaced: int
    left: dict[str, int] = {}


class Outcome(_Base):
    """What the operation did to the model as a whole; pairs are before and after.

    ``parts`` tells for each part of the rule what it did. ``multiplications`` are per example, ``latency``
    is in milliseconds for a batch of ``batch`` on ``device`` with ``threads`` CPU threads, its spread the
    quartiles. ``output_change`` is relative. What was not measured is None.
    """

    parameters: tuple[int, int]
    parts: list[str] = []
    found: list[Found] = []
    output_change: float | None = None
    multiplications: tuple[int, int] | None = None
    latency: tuple[float, float] | None = None
    latency_quartiles: tuple[tuple[float, float], tuple[float, float]] | None = None
    batch: int = 1
    threads: int = 1
    device: str = ""
    backend: str = ""


class Training(_Base):
    """One training of the model: by what, on what, and its held-out metrics before and after.

    ``teacher`` is None where there were only labels; ``settings`` are those that were not the defaults.
    """

    teacher: str | None = None
    data: str
    examples: int
    steps: int
    batch: int
    seconds: float
    settings: dict[str, Any] = {}
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    teacher_metrics: dict[str, float] = {}


class Record(_Base):
    """What ``ksurgeon.json`` holds.

    ``architecture`` gives name and shape of every tensor of the model before surgery; ``inputs`` describes
    the example inputs, which maps inside a ``forward`` are found again with; ``buffers`` gives the dtypes of
    buffers that are not part of the state; ``files`` are copies of what stood beside the original.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    ksurgeon: str = ""
    torch: str = ""
    source: Source | None = None
    rules: list[str] = []
    seed: int = 0
    operations: list[Operation] = []
    warnings: list[str] = []
    architecture: dict[str, tuple[int, ...]] = {}
    inputs: dict[str, Any] | None = None
    buffers: dict[str, str] = {}
    files: list[str] = []
    outcome: Outcome | None = None
    trainings: list[Training] = []

    @classmethod
    def begin(cls, model: nn.Module) -> "Record":
        """An empty record of a model as it is now."""
        return cls(ksurgeon=own_version(), torch=torch.__version__, architecture=signature(model))

    @property
    def stages(self) -> int:
        """Number of conversions that the model went through, one after the other."""
        return 1 + max((operation.stage for operation in self.operations), default=-1)


def own_version() -> str:
    """The version of ksurgeon that is installed."""
    try:
        return version("ksurgeon")
    except PackageNotFoundError:
        return "unknown"


def signature(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the model's state."""
    return {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)
    }


def record_of(model: nn.Module) -> Record | None:
    """The record of a converted model, None for any other."""
    return vars(model).get(_ATTRIBUTE)


listeners: list[Callable[[nn.Module, Record | None], None]] = []
"""Told of every record that a model gets, and of None where it loses its own."""


def attach(model: nn.Module, record: Record | None) -> None:
    """Give the model its record, or take it away."""
    if record is None:
        vars(model).pop(_ATTRIBUTE, None)
    else:
        vars(model)[_ATTRIBUTE] = record
    for listener in listeners:
        listener(model, record)


def describe_inputs(example_inputs: ExampleInputs | None) -> dict[str, Any] | None:
    """Shapes and dtypes of example inputs as plain data; None where they are no such thing."""
    if example_inputs is None:
        return None
    args, kwargs = as_call(example_inputs)
    try:
        return {"args": [_describe(a) for a in args], "kwargs": {k: _describe(v) for k, v in kwargs.items()}}
    except TypeError:
        return None


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        largest = (
            int(value.max())
            if value.numel() and not value.dtype.is_floating_point and not value.dtype.is_complex
            else 0
        )
        return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."), "max": largest}
    if isinstance(value, (tuple, list)):
        return {"list": [_describe(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": {str(key): _describe(item) for key, item in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(type(value).__name__)


def inputs_from(description: dict[str, Any], device: torch.device | str = "cpu") -> ExampleInputs:
    """Inputs of the shapes described: normally distributed numbers, or integers up to those there were.

    Raises:
        RecordError: the description is damaged.
    """
    generator = torch.Generator().manual_seed(0)

    def make(value: dict[str, Any]) -> Any:
        if "tensor" in value:
            dtype = getattr(torch, value["dtype"])
            shape = tuple(value["tensor"])
            if dtype.is_floating_point or dtype.is_complex:
                return torch.randn(shape, generator=generator).to(device, dtype)
            return torch.randint(0, max(value["max"], 0) + 1, shape, generator=generator).to(device, dtype)
        if "list" in value:
            return tuple(make(item) for item in value["list"])
        if "dict" in value:
            return {key: make(item) for key, item in value["dict"].items()}
        return value["value"]

    try:
        args, kwargs = (
            tuple(map(make, description["args"])),
            {k: make(v) for k, v in description["kwargs"].items()},
        )
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise RecordError(f"the record's description of example inputs is damaged ({error!r})") from error
    return kwargs if kwargs and not args else args
