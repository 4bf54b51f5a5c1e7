"""The record: what was done to a model, complete enough to do it again to a fresh architecture."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ksurgeon.errors import RecordError
from ksurgeon.find import Site
from ksurgeon.find.inputs import ExampleInputs, as_call
from ksurgeon.kmatrix.structures import Structure
from ksurgeon.models.inputs import Inputs
from ksurgeon.models.source import Source
from ksurgeon.patterns.pattern import Pattern
from ksurgeon.rules.plan import Decision
from ksurgeon.rules.schema import KindName
from ksurgeon.torch_private import pytree

__all__ = [
    "Folded",
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
_LARGEST_INPUTS = 10**7


class _Base(BaseModel):
    model_config = ConfigDict(
        extra="forbid", serialize_by_alias=True, validate_by_name=True, ser_json_inf_nan="strings"
    )


class Operation(_Base):
    """One replaced site; ``form`` tells what stands there: a K-module, or after a revert a dense layer.

    ``calibrated`` tells whether it was fitted to what the site does on data, not to its weight alone;
    ``aliases`` are further paths of the same site. ``int8`` has the patterns of its factors, and of those
    beside them, where they are quantized. ``permutation`` is that of a shuffle, or what an insertion
    with the start "geometry" began as. Records that earlier versions wrote may name an ``activation`` that
    the K-layer applied, and the ``activation_path`` of the module that it applied it for. Both are read and
    ignored: the module applies it itself, and the outputs are the same.
    """

    path: str
    aliases: tuple[str, ...] = ()
    kind: KindName
    form: Literal["kaleidoscope", "dense"] = "kaleidoscope"
    structure: Structure
    start: str
    calibrated: bool = False
    permutation: tuple[int, ...] | None = None
    dim: int | None = None
    ndim: int = 0
    groups: Annotated[int, Field(ge=1)] = 1
    facts: dict[str, Any] = {}
    parameter: str = ""
    parts: Annotated[int, Field(ge=1, le=1024)] = 1
    stage: Annotated[int, Field(ge=0, lt=1000)] = 0
    int8: tuple[tuple[Pattern, ...], ...] = ()
    parameters_before: int = 0
    parameters_after: int = 0
    weight_error: float | None = None
    output_error: float | None = None
    activation: str | None = Field(default=None, exclude=True)
    activation_path: str = Field(default="", exclude=True)

    @classmethod
    def of(cls, site: Site, decision: Decision, **done: Any) -> Self:
        """What was done to a site as a plan decided; ``done`` tells what came of it."""
        found = ("path", "aliases", "kind", "permutation", "dim", "ndim", "groups", "facts", "parameter")
        decided = ("structure", "start", "parts", "parameters_before", "parameters_after")
        facts = {name: getattr(site, name) for name in found}
        return cls.model_validate(facts | {name: getattr(decision, name) for name in decided} | done)


class Folded(_Base):
    """A batch norm that the layer before it does, by their paths; ``had_bias`` tells of the layer before."""

    layer: str
    norm: str
    had_bias: bool


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
    quartiles. ``bytes`` are those of parameters and buffers. ``output_change`` is relative. What was not
    measured is None.
    """

    parameters: tuple[int, int]
    bytes: tuple[int, int] | None = None
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
    ``metric`` is the one that decided what is kept, on ``held_out`` examples.
    """

    teacher: str | None = None
    data: str
    examples: int
    steps: int
    batch: int
    seconds: float
    settings: dict[str, Any] = {}
    metric: str = ""
    held_out: int = 0
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    teacher_metrics: dict[str, float] = {}


class Record(_Base):
    """What ``ksurgeon.json`` holds.

    ``architecture`` gives name and shape of every tensor of the model before surgery; ``inputs`` describes
    the example inputs, which maps inside a ``forward`` are found again with; ``buffers`` gives the dtypes of
    buffers that are not part of the state; ``files`` are copies of what stood beside the original;
    ``int8_tied`` are paths of layers with tied weights that are computed in int8;
    ``shared`` gives the first name of what has several (see ``sharing``), None where the save tells nothing.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    ksurgeon: str = ""
    torch: str = ""
    source: Source | None = None
    rules: list[str] = []
    seed: int = 0
    operations: list[Operation] = []
    folded: list[Folded] = []
    int8_tied: list[str] = []
    warnings: list[str] = []
    architecture: dict[str, tuple[int, ...]] = {}
    inputs: dict[str, Any] | None = None
    buffers: dict[str, str] = {}
    files: list[str] = []
    shared: dict[str, str] | None = None
    outcome: Outcome | None = None
    trainings: list[Training] = []

    @classmethod
    def begin(cls, model: nn.Module) -> "Record":
        """An empty record of a model as it is now."""
        return cls(ksurgeon=own_version(), torch=torch.__version__, architecture=signature(model))

    @property
    def changes_something(self) -> bool:
        """Whether the model is another one than its architecture builds."""
        return bool(self.operations or self.folded or self.int8_tied)

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
    """Shapes and dtypes of example inputs as plain data; None where they are no such thing.

    Of more than ten million numbers, which ``inputs_from`` does not make, as many examples as are fewer.
    """
    if example_inputs is None:
        return None
    args, kwargs = as_call(example_inputs)
    call = {"args": list(args), "kwargs": dict(kwargs)}
    tensors = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor)]
    numbers, batches = sum(leaf.numel() for leaf in tensors), {leaf.shape[:1] for leaf in tensors}
    if numbers > _LARGEST_INPUTS:
        rows = next(iter(batches)).numel() * _LARGEST_INPUTS // numbers if len(batches) == 1 else 0
        if rows == 0:
            return None
        call = pytree.tree_map(lambda leaf: leaf[:rows] if isinstance(leaf, Tensor) else leaf, call)
    try:
        return {name: _tree(part) for name, part in call.items()}
    except TypeError:
        return None


def _tree(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _describe(value) for key, value in part.items()}
    return [_describe(value) for value in part]


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        counts = value.numel() and not value.dtype.is_floating_point and not value.dtype.is_complex
        least, most = (int(value.min()), int(value.max())) if counts else (0, 0)
        described = {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        return {**described, "max": most, **({"min": least} if least > 0 else {})}
    if isinstance(value, (tuple, list)):
        return {"list": [_describe(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": {str(key): _describe(item) for key, item in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(type(value).__name__)


def inputs_from(description: dict[str, Any], device: torch.device | str = "cpu", seed: int = 0) -> Inputs:
    """Inputs of the shapes described: normally distributed numbers, or integers between those there were.

    Raises:
        RecordError: the description is damaged, or of more than ten million numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    left = _LARGEST_INPUTS

    def make(value: dict[str, Any]) -> Any:
        nonlocal left
        if "tensor" in value:
            dtype = getattr(torch, value["dtype"])
            shape = tuple(value["tensor"])
            left -= prod(shape)
            if left < 0 or min(shape, default=1) < 0 or not isinstance(dtype, torch.dtype):
                raise ValueError(f"{dtype} of shape {shape}")
            if dtype.is_floating_point or dtype.is_complex:
                return torch.randn(shape, generator=generator).to(device, dtype)
            least, most = value.get("min", 0), max(value["max"], 0)
            return torch.randint(least, most + 1, shape, generator=generator).to(device, dtype)
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
    except Exception as error:  # whatever there may be in the place of a number, a list or a table
        raise RecordError(f"the record's description of example inputs is damaged ({error!r})") from error
    return kwargs if kwargs and not args else args
