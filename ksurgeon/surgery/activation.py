"""Activations that a K-module takes over from the module behind it, where nothing else sees its output."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from ksurgeon.errors import RecordError
from ksurgeon.find import Finder, Site
from ksurgeon.find.guards import require
from ksurgeon.find.movement import as_function
from ksurgeon.find.tracer import Trace, TraceFailure, trace_module
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.surgery.operate import ModuleSwap
from ksurgeon.surgery.record import Operation

__all__ = ["FusedActivation", "Fusion", "find_fusions", "replay_fusions", "restorations"]

_NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class FusedActivation(nn.Identity):
    """Stands where an activation was that the K-module before it now applies; keeps the activation."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.replaced = (original,)  # in a tuple: it is no child
        self.train(original.training)

    def extra_repr(self) -> str:
        return f"{self.replaced[0]}, applied by the layer before"


@dataclass
class Fusion(ModuleSwap):
    """A K-module that takes over an activation, and what stands in the activation's place.

    Attributes:
        path: the activation's path.
        layer: the K-module.
        name: the activation's name in ``kernels.apply_chain``.
    """

    path: str = ""
    layer: KLinear | KPointwiseConv = field(kw_only=True)
    name: str | None = field(kw_only=True)

    def do(self) -> None:
        self.layer.activation = self.name
        super().do()

    def undo(self) -> None:
        super().undo()
        self.layer.activation = None


def activation_name(module: nn.Module) -> str | None:
    """Name of an activation of torch.nn in ``kernels.apply_chain``; None for any other module."""
    if type(module) is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(module.approximate)
    return _NAMES.get(type(module))


def find_fusions(
    model: nn.Module, finder: Finder, replacements: Iterable[tuple[Site, nn.Module]]
) -> dict[str, Fusion]:
    """Fusions by the path of their site, for those replacements where they are proved to change nothing.

    That is where the one call of the layer in the example run is in a forward that traces, in training as
    well as in evaluation and without conditions on its inputs, where the output goes into one call of an
    activation module and nowhere else, and where neither is shared, called again, or hooked. The model is
    not changed.
    """
    layers = {
        site.path: new
        for site, new in replacements
        if isinstance(new, (KLinear, KPointwiseConv)) and not site.nodes and not site.aliases
    }
    if finder.recording is None or not layers:
        return {}
    places = _places(model)
    fusions: dict[str, Fusion] = {}
    for owner_path, trace in finder.traces.items():
        found = {
            layer: activation
            for layer, activation in _pairs(owner_path, trace)
            if layer in layers
            and all(
                _is_alone(module := model.get_submodule(path), places, finder)
                and not any(getattr(module, hooks) for hooks in _HOOKS)
                for path in (layer, activation)
            )
            and activation_name(model.get_submodule(activation))
        }
        if found and _also_in_training(model.get_submodule(owner_path), owner_path, finder, found):
            for layer, activation in found.items():
                fusions[layer] = _fusion(model, layers[layer], activation)
    return fusions


def replay_fusions(model: nn.Module, operations: Iterable[Operation]) -> list[Fusion]:
    """The fusions of a record, on a model in which its K-modules stand already.

    Raises:
        RecordError: the model has no such activation where the record says.
    """
    fusions = []
    for operation in operations:
        if operation.activation is None:
            continue
        try:
            present = activation_name(model.get_submodule(operation.activation_path))
            layer = model.get_submodule(operation.path)
        except AttributeError:
            present = None
        if present != operation.activation or not isinstance(layer, (KLinear, KPointwiseConv)):
            raise RecordError(
                f"the record fuses {operation.activation} at {operation.activation_path!r} into "
                f"{operation.path!r}, and this model has {present or 'none'} there; it was made with another "
                "version of the model's code"
            )
        fusions.append(_fusion(model, layer, operation.activation_path))
    return fusions


def restorations(model: nn.Module) -> list[ModuleSwap]:
    """Swaps that put every activation back where it was; the layers before are to go with them."""
    return [
        ModuleSwap([(parent, name)], [child], [child.replaced[0]])
        for parent in model.modules()
        for name, child in parent._modules.items()
        if isinstance(child, FusedActivation)
    ]


def _fusion(model: nn.Module, layer: KLinear | KPointwiseConv, path: str) -> Fusion:
    original = model.get_submodule(path)
    parent, _, name = path.rpartition(".")
    place, stand_in = (model.get_submodule(parent), name), FusedActivation(original)
    return Fusion([place], [original], [stand_in], path, layer=layer, name=activation_name(original))


def _pairs(owner: str, trace: Trace) -> Iterator[tuple[str, str]]:
    """Paths of children of which the second takes what the first gives, and nothing else does."""
    nodes, prefix = trace.graph.nodes, f"{owner}." if owner else ""
    if any(node.op == "call_function" and _is_guard(node) for node in nodes):
        return
    for node in nodes:
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        source = node.args[0]
        if isinstance(source, fx.Node) and source.op == "call_module" and list(source.users) == [node]:
            yield f"{prefix}{source.target}", f"{prefix}{node.target}"


def _is_guard(node: fx.Node) -> bool:
    return getattr(node.target, "__module__", None) == require.__module__


def _places(model: nn.Module) -> Mapping[int, int]:
    """In how many places every module stands, by ``id``."""
    places: dict[int, int] = defaultdict(int)
    for parent in model.modules():
        for child in parent._modules.values():
            places[id(child)] += 1
    return places


def _is_alone(module: nn.Module, places: Mapping[int, int], finder: Finder) -> bool:
    assert finder.recording is not None
    return places[id(module)] == 1 and finder.recording.counts.get(id(module)) == 1


def _also_in_training(owner: nn.Module, path: str, finder: Finder, found: Mapping[str, str]) -> bool:
    """Whether the forward does the same where it asks if the module is being trained."""
    if type(owner) is nn.Sequential:
        return True
    before, owner.training = owner.training, True
    try:
        trace = trace_module(as_function(owner), finder.call_of(owner))
    except TraceFailure:
        return False
    finally:
        owner.training = before
    return found.items() <= dict(_pairs(path, trace)).items()
