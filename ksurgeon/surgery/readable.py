"""Whether what a save would write can be loaded again: asked before the work, and before it is written."""

from collections.abc import Mapping

from torch import nn

from ksurgeon.errors import KsurgeonError, SurgeryError
from ksurgeon.find.inputs import call_model, evaluating
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.int8 import Int8Matrix
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import new_matrix
from ksurgeon.kmatrix.structures import Structure
from ksurgeon.models.opening import build, skeleton
from ksurgeon.models.source import Source
from ksurgeon.site_kinds import SiteKind, kind_of, site_kind
from ksurgeon.surgery.current import layer_paths, modules_at, replacements_of
from ksurgeon.surgery.folded import FoldedNorm
from ksurgeon.surgery.inserted import insertions_of
from ksurgeon.surgery.record import Operation, Record, inputs_from, signature

__all__ = [
    "NOT_FOUND_AGAIN",
    "differences",
    "finds_again",
    "require_builds",
    "require_inserted",
    "require_no_others",
    "require_readable",
    "require_same",
]

NOT_FOUND_AGAIN = (
    "maps inside a forward are found again by a run on random inputs of the recorded shapes, on which this "
    "model does not run: convert it with example_inputs of tensors, numbers, text, lists and dicts alone, of "
    "any values; the state_dict keeps a model that was trained already"
)
"""Why such a model cannot be saved, and what to do."""

_Shapes = Mapping[str, tuple[int, ...]]


def differences(own: _Shapes, recorded: _Shapes) -> str:
    """What of an architecture is not as it was recorded, three of it named; empty where all is."""
    found = [f"{name} is missing" for name in recorded if name not in own]
    found += [f"{name} is not in the record" for name in own if name not in recorded]
    found += [
        f"{name} is {own[name]} instead of {recorded[name]}"
        for name in recorded
        if name in own and own[name] != recorded[name]
    ]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"{'; '.join(found[:3])}{more}"


def require_builds(source: Source | None, architecture: _Shapes) -> None:
    """Return if the source builds the architecture, as ``load`` will ask it to.

    Raises:
        SurgeryError: it builds another one, or none.
    """
    if source is None or not architecture:
        return
    try:
        # A function may keep what it builds, which is to have values then.
        model = build(source) if source.kind == "function" else skeleton(source)
        built = differences(signature(model), architecture)
    except KsurgeonError as error:
        built = str(error)
    if built:
        raise SurgeryError(
            f"{source.name} ({source.kind}) does not build this model, so that a saved one could not be "
            f"loaded: {built}; name the function that builds it (source='package.module:function'), or leave "
            "source out and give load the model"
        )


def finds_again(model: nn.Module, record: Record) -> bool:
    """Whether the model runs on inputs of the recorded shapes, as ``load`` will have to run it."""
    if record.inputs is None:
        return False
    device = next((p.device for p in model.parameters()), "cpu")
    try:
        with evaluating(model):
            call_model(model, inputs_from(record.inputs, device))
    except KsurgeonError:
        return False
    return True


def require_readable(model: nn.Module, record: Record) -> None:
    """Return if loading would put K-modules of the same tensors where the model has them.

    A K-layer of another structure than the one that an operation put there is recorded as it is.

    Raises:
        SurgeryError: a K-layer was wrapped or changed, or maps inside a forward could not be found again.
    """
    if record.inputs is None and any(not site_kind(each.kind).has_weight for each in record.operations):
        raise SurgeryError(NOT_FOUND_AGAIN)
    require_known(model, record)
    for operation in record.operations:
        if operation.form != "dense":
            kind = site_kind(operation.kind)
            for path in layer_paths(operation) if kind.has_weight else ():
                _require_there(model, kind, path)
            kind.require_readable(model, record, operation)


def require_known(model: nn.Module, record: Record | None) -> None:
    """Return if every folded batch norm is one that the record knows.

    Raises:
        SurgeryError: the layer of one was replaced by another, or gone with its bias.
    """
    known = {each.norm for each in record.folded} if record is not None else set()
    for path, module in model.named_modules():
        if isinstance(module, FoldedNorm) and path not in known:
            raise SurgeryError(
                f"{path} was folded into a layer that is no longer there, so that nothing does its work: put "
                "a batch norm there again, or an nn.Identity"
            )


def require_no_others(model: nn.Module, record: Record) -> None:
    """Return if every K-module was put there by an operation, or belongs to the architecture.

    Raises:
        SurgeryError: there is another one, which only a model given to ``load`` could have.
    """
    put = {id(inner) for o in record.operations for m in replacements_of(model, o) for inner in m.modules()}
    for path, module in model.named_modules():
        if kind_of(module) is None or id(module) in put:
            continue
        if not {f"{path}.{name}" for name in signature(module)} <= set(record.architecture):
            raise SurgeryError(
                f"{path} is a {type(module).__name__} that was put into the model after its conversion, and "
                "from_pretrained would build a dense layer there: use ksurgeon.save and "
                "ksurgeon.load(folder, model=…), or build it in the model's own class"
            )


def require_inserted(model: nn.Module, operation: Operation) -> None:
    """Return if an inserted map is a child of the module that it was inserted at.

    Raises:
        SurgeryError: the module is inside another one now.
    """
    owners = (operation.path.partition(":")[0], *operation.aliases)
    children = {id(child) for path in owners for m in modules_at(model, path)[:1] for child in m.children()}
    if not all(id(new) in children for new in replacements_of(model, operation)):
        raise SurgeryError(
            f"{owners[0]}, which a map was inserted at, is inside another module now, so that a saved model "
            "could not be loaded again: take it out first (peft: merge_and_unload() or unload()), or save "
            "the adapter by itself (peft: save_pretrained)"
        )


def _require_there(model: nn.Module, kind: SiteKind, path: str) -> None:
    layer = next(iter(modules_at(model, path)), None)
    if not isinstance(layer, kind.classes):
        there = f"is inside a {type(layer).__name__}" if layer is not None else "is not there"
        raise SurgeryError(
            f"{path} was a K-layer and {there} now, so that a saved model could not be loaded again: take it "
            "out first (peft: merge_and_unload() or unload()), or save the adapter by itself (peft: "
            "save_pretrained)"
        )


def require_same(model: nn.Module, record: Record, operation: Operation) -> None:
    """Return if the K-layers of an operation are what a load would build; another structure is recorded.

    Raises:
        SurgeryError: one has other tensors.
    """
    for path in layer_paths(operation):
        layer = model.get_submodule(path)
        assert isinstance(layer, (KLinear, KPointwiseConv))
        _require_same(layer, record, operation, path)


def _require_same(layer: KLinear | KPointwiseConv, record: Record, operation: Operation, path: str) -> None:
    weight = operation.path if operation.parameter else f"{operation.path}.weight"
    bias = record.architecture.get(f"{operation.path}.bias") if not operation.parameter else None
    inserted = tuple(f"{name}." for _, name, _ in insertions_of(layer))
    own = {name: shape for name, shape in signature(layer).items() if not name.startswith(inserted)}
    if not record.architecture or any(each.layer == path for each in record.folded):
        bias = own.get("bias")
    sizes = tuple(layer.weight.shape)
    operation.int8 = layer.matrix.chains if isinstance(layer.matrix, Int8Matrix) else ()
    if sizes == record.architecture.get(weight, sizes):
        if own == _built(layer, operation.structure, bias):
            return
        parts = getattr(layer, "parts", 1)
        if own == _built(layer, layer.matrix.structure, bias):
            operation.structure, operation.parts = layer.matrix.structure, parts
            return
    raise SurgeryError(
        f"{path} is no longer the K-layer of the operation, so that a saved model could not be loaded again: "
        f"{differences(own, _built(layer, operation.structure, bias))}; undo the change (prune.remove, "
        "remove_parametrizations, a bias), or keep the state_dict"
    )


def _built(
    layer: KLinear | KPointwiseConv, structure: Structure, bias: tuple[int, ...] | None
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a layer that is built anew."""
    matrix = layer.matrix
    sizes = matrix.in_features, matrix.out_features
    new: nn.Module
    if isinstance(matrix, Int8Matrix):
        groups, chains = matrix.groups, matrix.chains
        new = Int8Matrix(*sizes, groups=groups, structure=structure, chains=chains, device="meta")
    else:
        new = new_matrix(*sizes, groups=matrix.groups, structure=structure, start="empty", device="meta")
    shapes = {f"matrix.{name}": shape for name, shape in signature(new).items()}
    return shapes if bias is None else {"bias": bias, **shapes}
