"""Weights of the dense architecture for a model that is converted already."""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ksurgeon.errors import SurgeryError, WeightsError
from ksurgeon.fit import fit_
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.int8 import Int8Matrix
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.structured import StructuredMatrix
from ksurgeon.kmatrix.structures import Dense
from ksurgeon.site_kinds import site_kind
from ksurgeon.surgery.build import dense_weight, in_parts, set_dense
from ksurgeon.surgery.computed import child_of
from ksurgeon.surgery.current import current_record
from ksurgeon.surgery.record import Operation, Record, attach

__all__ = ["load_dense"]

_Layer = KLinear | KPointwiseConv


def load_dense(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, float]:
    """Load a checkpoint of the dense architecture into a converted model.

    The K-matrices are fitted to the weights that they stand for; what was not replaced is loaded as it is.
    Maps that had no weights, such as shuffles, keep their factors.

    Args:
        model: what ``convert``, ``load`` or ``from_pretrained`` gave.
        state_dict: that of the model before surgery; of tied tensors one suffices.
        seed: of random numbers that a fit may draw.
        progress: called before each layer and once at the end, as by ``convert``.

    Returns:
        Relative Frobenius error of every K-matrix, by the path of its layer.

    Raises:
        SurgeryError: the model was not converted, or its batch norms are folded.
        WeightsError: names or shapes are not those of the dense architecture, or a weight is not finite; the
            model is then as it was.
    """
    record = current_record(model)
    if record is None or not record.operations:
        raise SurgeryError("this model holds no K-matrices: call its own load_state_dict")
    if record.folded:
        raise SurgeryError(
            "batch norms are folded into layers of this model: call ksurgeon.unfold(model) first, and fold "
            "it again afterwards"
        )
    layers = {
        f"{o.path}{'' if o.parameter else '.weight'}": (o, _layer_of(model, o))
        for o in record.operations
        if site_kind(o.kind).has_weight
    }
    _check(model, record, state_dict, set(layers))
    fitted: list[tuple[Operation, StructuredMatrix, StructuredMatrix, float]] = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for number, (name, (operation, layer)) in enumerate(layers.items()):
            if progress is not None:
                progress(number, len(layers), operation.path)
            matrix = layer.matrix
            if isinstance(matrix, Int8Matrix):
                raise SurgeryError(
                    f"{operation.path} is quantized, and weights are fitted before they are: load them into "
                    "the model as it was before ksurgeon.quantize"
                )
            new = copy.deepcopy(matrix)
            first = next(new.parameters())
            weight = _matrix_of(layer, state_dict[name].to(first.device, first.dtype))
            if isinstance(matrix.structure, Dense):
                set_dense(new, weight)
                error = 0.0
            else:
                error = fit_(new, weight)
            fitted.append((operation, matrix, new, error))
        if progress is not None:
            progress(len(layers), len(layers), "")
        for _, matrix, new, _ in fitted:
            for mine, value in zip(_values(matrix), _values(new), strict=True):
                mine.copy_(value)
        rest = {name: tensor for name, tensor in state_dict.items() if name not in layers}
        model.load_state_dict(rest, strict=False)
    for operation, _, _, error in fitted:
        operation.weight_error, operation.output_error = error, None
        operation.calibrated = False
    if record.outcome is not None:
        record.outcome.output_change = None
    attach(model, record)
    return {operation.path: error for operation, _, _, error in fitted}


def _values(matrix: StructuredMatrix) -> list[Tensor]:
    return [*matrix.parameters(), *matrix.buffers()]


def _layer_of(model: nn.Module, operation: Operation) -> _Layer:
    path, kind = operation.path, site_kind(operation.kind)
    if not kind.is_dense:
        raise SurgeryError(
            f'{path} is no K-layer, and a replacement of the kind "{kind.name}" takes no dense weight: load '
            "the weights into the architecture before ksurgeon.convert"
        )
    if operation.parameter:
        owner = path.removesuffix(operation.parameter)
        path = f"{owner}{child_of(operation.parameter)}"
    layer = model.get_submodule(path)
    if not isinstance(layer, (KLinear, KPointwiseConv)):
        raise SurgeryError(f"{path} is a {type(layer).__name__} now, and was a K-layer when it was recorded")
    return layer


def _matrix_of(layer: _Layer, weight: Tensor) -> Tensor:
    """What the layer's K-matrix is to be, from a weight of the layout of the layer that it replaced."""
    shell = vars(layer).get("shell")
    if shell is None:
        assert isinstance(layer, KLinear)
        return in_parts(weight.T if layer.transposed else weight, layer.parts)
    dense = copy.copy(shell)
    vars(dense)["_parameters"] = {**shell._parameters, "weight": nn.Parameter(weight, False)}
    return in_parts(dense_weight(dense), getattr(layer, "parts", 1))


def _check(model: nn.Module, record: Record, given: Mapping[str, Tensor], replaced: set[str]) -> None:
    own = {name for name in model.state_dict() if name in record.architecture}
    pointers: dict[int, list[str]] = {}
    for name, tensor in model.state_dict().items():
        pointers.setdefault(tensor.data_ptr() or id(tensor), []).append(name)
    tied = {name: names for names in pointers.values() for name in names}
    missing = [
        name for name in own | replaced if name not in given and not set(tied.get(name, ())) & set(given)
    ]
    strange = [name for name in given if name not in record.architecture]
    wrong = [
        f"{name} is {tuple(given[name].shape)} instead of {shape}"
        for name, shape in record.architecture.items()
        if name in given and tuple(given[name].shape) != shape
    ]
    wild = [name for name in replaced if name in given and not bool(given[name].isfinite().all())]
    problems = [f"{name} is missing" for name in sorted(missing)]
    problems += [f"{name} is not part of the dense model" for name in strange] + wrong
    problems += [f"{name} has entries that are NaN or infinite" for name in sorted(wild)]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(
            f"these are no weights of the dense {type(model).__name__}: {'; '.join(problems[:3])}{more}; "
            "give the state_dict of the architecture before surgery"
        )
