"""One run of a model on example inputs: the shapes that every module saw."""

import threading
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ksurgeon.errors import InputError
from ksurgeon.find.inputs import (
    ExampleInputs,
    as_call,
    call_model,
    is_on_meta,
    repeat_single_example,
    tensors_of,
)
from ksurgeon.find.unchanged import example_run
from ksurgeon.find.uses import Use, WatchProducts
from ksurgeon.torch_private import FakeTensorMode, pytree

__all__ = ["Call", "Recording", "TensorSpec", "record_run", "record_values"]

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding)
_DIFFERENT_CALLS = 32
_ELEMENTWISE = ("torch.nn.modules.activation", "torch.nn.modules.dropout", "torch.nn.modules.linear.Identity")


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor that passed by; ``channel`` is its channel dimension where a layer told."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    channel: int | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorSpec":
        return cls(
            tuple(tensor.shape),
            tuple(tensor.stride()) if tensor.layout == torch.strided else (),
            tensor.dtype,
            tensor.device,
            getattr(tensor, "_ksurgeon_channel", None),
        )


@dataclass
class Call:
    """One call of a module, tensors replaced by their specs, and the calls of modules it made.

    A ``real`` call holds copies of the tensors that the module took and of those its children gave.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    children: list[tuple[int, "Call"]] = field(default_factory=list)
    real: bool = False


@dataclass
class Recording:
    """What a run told; modules and parameters are known by ``id``.

    Attributes:
        inputs: what the model was run on.
        batch: examples in it.
        first: the first call of every module.
        others: further calls with arguments of other kinds or shapes.
        unknown: modules that were called in more ways than are kept.
        counts: how often each module was called.
        rows: entries that each module gave, over all its calls.
        uses: products with each parameter.
        lookups: parameters that served as the table of an embedding.
    """

    inputs: ExampleInputs
    batch: int
    first: dict[int, Call] = field(default_factory=dict)
    others: dict[int, list[Call]] = field(default_factory=lambda: defaultdict(list))
    unknown: set[int] = field(default_factory=set)
    counts: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    rows: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    uses: Mapping[int, list[Use]] = field(default_factory=dict)
    lookups: set[int] = field(default_factory=set)

    def vectors(self, module: nn.Module, features: int) -> int:
        """Vectors of ``features`` entries that the module gave per example, over all its calls."""
        return self.rows[id(module)] // (features * self.batch)

    def multiplied_by(self, parameter: Tensor | None) -> int:
        """Vectors per example that a parameter was multiplied by, outside of its own module's forward."""
        return sum(use.rows for use in self.uses.get(id(parameter), ())) // self.batch


def _differ(one: Call, other: Call) -> bool:
    """Whether the calls had arguments of other shapes, other numbers or other flags."""
    first, second = (pytree.tree_flatten((call.args, call.kwargs)) for call in (one, other))
    if first[1] != second[1]:
        return True
    plain = (TensorSpec, bool, int, float, str, type(None))
    return any(
        type(a) is not type(b) or (isinstance(a, plain) and a != b)
        for a, b in zip(first[0], second[0], strict=True)
    )


def _specs(tree: Any) -> Any:
    return pytree.tree_map(lambda leaf: TensorSpec.of(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def _copies(tree: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, tree)


def channel_dim_of(module: nn.Module, ndim: int) -> int | None:
    """Channel dimension of what a module of torch.nn gives, where its class tells."""
    if isinstance(module, _CHANNELS_FIRST):
        return 1 if ndim > 1 else None
    return ndim - 1 if isinstance(module, _CHANNELS_LAST) else None


def is_elementwise(module: nn.Module) -> bool:
    """Whether the module works entry by entry (activations, dropout, identity)."""
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    return name.startswith(_ELEMENTWISE) and not isinstance(module, nn.MultiheadAttention)


def _tag(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if not isinstance(output, Tensor):
        return
    channel = channel_dim_of(module, output.dim())
    if channel is None and is_elementwise(module) and args and isinstance(args[0], Tensor):
        channel = getattr(args[0], "_ksurgeon_channel", None)
    if channel is not None:
        output._ksurgeon_channel = channel  # type: ignore[attr-defined]


@contextmanager
def _hooks(model: nn.Module, recording: Recording, real: Collection[int] = ()) -> Iterator[None]:
    stack: list[Call] = []
    running: list[int] = []
    thread = threading.get_ident()  # another one may serve the model meanwhile

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != thread:
            return
        kept = _copies if id(module) in real else _specs
        call = Call(kept(args), kept(kwargs), real=id(module) in real)
        if stack:
            stack[-1].children.append((id(module), call))
        recording.counts[id(module)] += 1
        recording.first.setdefault(id(module), call)
        stack.append(call)
        running.append(id(module))

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if threading.get_ident() != thread:
            return
        _tag(module, args, output)
        call = stack.pop()
        running.pop()
        call.output = _copies(output) if stack and stack[-1].real else _specs(output)
        recording.rows[id(module)] += sum(t.numel() for t in tensors_of(output)[:1])
        if recording.first[id(module)] is not call:
            known = [recording.first[id(module)], *recording.others[id(module)]]
            new = all(_differ(call, other) for other in known)
            if new and len(known) < _DIFFERENT_CALLS:
                recording.others[id(module)].append(call)
            else:
                call.children.clear()
                if new:
                    recording.unknown.add(id(module))

    def after_any(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        own = threading.get_ident() == thread
        if own and isinstance(module, torch.jit.ScriptModule) and stack:  # takes no hooks of its own
            kept = _copies if stack[-1].real else _specs
            stack[-1].children.append((id(module), Call((), {}, kept(output))))

    handles: list[Any] = [register_module_forward_hook(after_any)]
    try:
        for module in model.modules():
            # Of a list of factors, which has no forward, K-matrices call the hooks before one alone.
            if not isinstance(module, (torch.jit.ScriptModule, nn.ParameterList)):
                handles.append(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
                handles.append(module.register_forward_hook(after, with_kwargs=True))
        watch = WatchProducts(model.parameters(), lambda: running[-1] if running else id(model))
        with watch:
            yield
        recording.uses, recording.lookups = watch.uses, watch.lookups
    finally:
        for handle in handles:
            handle.remove()


def record_run(model: nn.Module, example_inputs: ExampleInputs) -> Recording:
    """Run the model once, in eval mode and without gradients, and note what every module saw.

    A model on the meta device is run without computing anything, on inputs moved there.

    A batch of one is run as a batch of two where the model takes it.

    Raises:
        InputError: the model does not run on the inputs.
    """
    doubled = repeat_single_example(example_inputs)
    if doubled is not example_inputs:
        try:
            return _record(model, doubled)
        except InputError:
            pass
    return _record(model, example_inputs)


def _record(model: nn.Module, example_inputs: ExampleInputs, real: Collection[int] = ()) -> Recording:
    sizes = [t.shape[0] for t in tensors_of(as_call(example_inputs)) if t.dim()]
    recording = Recording(example_inputs, batch=sizes[0] if sizes and sizes[0] else 1)
    with ExitStack() as stack:
        if is_on_meta(model):  # nothing is computed, and what asks whether values are known is told
            mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            args, kwargs = as_call(example_inputs)
            example_inputs = pytree.tree_map(
                lambda leaf: mode.from_tensor(leaf.to("meta")) if isinstance(leaf, Tensor) else leaf,
                kwargs or args,
            )
        stack.enter_context(example_run(model))
        stack.enter_context(_hooks(model, recording, real))
        call_model(model, example_inputs)
    return recording


def record_values(model: nn.Module, recording: Recording, modules: Collection[int]) -> dict[int, Call]:
    """The first call of each of the modules, known by ``id``, with the values, from one more run.

    None of a model on the meta device, which has no values.
    """
    if is_on_meta(model):
        return {}
    again = _record(model, recording.inputs, modules)
    return {module: again.first[module] for module in modules if module in again.first}
