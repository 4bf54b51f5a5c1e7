"""Linear layers and pointwise convolutions in int8: K-layers, and dense ones as those of one dense factor."""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import torch
from pydantic import ValidationError
from torch import nn

from ksurgeon.errors import MatchError, RuleError, StructureError
from ksurgeon.find.inputs import ExampleInputs, require_weights
from ksurgeon.kernels.rounding import LONGEST
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.int8 import Int8Matrix, quantized
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import Dense
from ksurgeon.rules.schema import Replacement, Rule, Where, matching
from ksurgeon.rules.select import Selection
from ksurgeon.site_kinds import site_kinds
from ksurgeon.surgery.carry_out import carry_out, extended_record
from ksurgeon.surgery.current import current_record, replacements_of
from ksurgeon.surgery.operate import MatrixSwap, Swap, swap_all, undo_all
from ksurgeon.surgery.quantize_tied import tied_heads, to_int8
from ksurgeon.surgery.record import Outcome, Record, attach, record_of
from ksurgeon.surgery.recorded import source_of
from ksurgeon.surgery.sizes import count_bytes, count_parameters

__all__ = ["quantize", "quantize_layers"]

_READ = ("NonDynamicallyQuantizableLinear",)  # of nn.MultiheadAttention, which reads its weight
_PART, _TIED = " layers in int8", " tied output heads computed in int8"
_Layer = TypeVar("_Layer", bound=nn.Module)


def quantize(
    model: nn.Module,
    targets: Sequence[str] = (),
    ignore: Sequence[str] = (),
    *,
    tied: bool = False,
    example_inputs: ExampleInputs | None = None,
) -> dict[str, float]:
    """Quantize the linear layers and pointwise convolutions of a model to int8, in place: K-layers and dense
    ones.

    Weights are rounded to 255 steps, those of each output of a block of a factor by their largest one.
    In inference on a CPU the inputs of every factor are rounded as well, each vector by its largest entry
    when it comes (dynamic quantization), and multiplied in int8; the vectors of a convolution are those of
    its positions. Neighbouring factors are multiplied out first where that is faster. A dense layer becomes a
    ``KLinear`` or ``KPointwiseConv`` of structure "dense". The result is saved, loaded, reverted (to dense
    layers of the rounded weights) and exported like any converted model; quantized weights cannot be trained,
    what is beside them can.

    Left alone are larger and depthwise convolutions, maps inside a forward, complex weights, weights tied to
    others or read by a forward instead of the layer being called.

    An output head tied to an embedding is the largest layer of a small decoder. With ``tied`` it becomes a
    ``TiedInt8Linear``: the weight stays the embedding's, is trained and saved as before, and eager inference
    on a CPU multiplies by a copy of it in int8, which takes a quarter of its memory in addition.

    Args:
        model: changed in place; a call that raises leaves it as it was.
        targets: paths of layers, ``re:`` and a regular expression that matches the whole path, or class
            names; every linear layer and pointwise convolution if left out.
        ignore: the same, of layers that stay as they are.
        tied: whether to compute output heads that are tied to embeddings in int8, too.
        example_inputs: as for ``convert``, for models whose layers only a run tells.

    Returns:
        For the path of every layer quantized the relative Frobenius error of its weight.

    Warns:
        UserWarning: a target is no such layer, while others are.

    Raises:
        MatchError: there is no such layer.
        RuleError: a target is no regular expression.
        WeightsError: a weight is not finite.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64))
        >>> list(ksurgeon.quantize(model))
        ['0']
    """
    return quantize_layers(model, targets, ignore, example_inputs, tied)[0]


def quantize_layers(
    model: nn.Module,
    targets: Sequence[str] = (),
    ignore: Sequence[str] = (),
    example_inputs: ExampleInputs | None = None,
    tied: bool = False,
) -> tuple[dict[str, float], list[Swap]]:
    """What ``quantize`` gives, and what was done, in order."""
    require_weights(model)
    targets, ignore = _listed(targets), _listed(ignore)
    heads = _asked(tied_heads(model) if tied else {}, targets, ignore)
    begun = extended_record(model, source_of(model), False, example_inputs) if heads else None
    before, done, sizes = record_of(model), list[Swap](), (count_parameters(model), count_bytes(model))
    try:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "no example_inputs given|.*matches nothing", UserWarning)
                done += carry_out(model, Selection(_dense_rule(targets, ignore)), example_inputs).swaps
        except MatchError:
            if not _layers(model, targets, ignore) and not heads:
                raise
        swaps: list[Swap] = []
        errors: dict[str, float] = {}
        made: dict[int, Int8Matrix] = {}  # a matrix that layers share stays one
        for path, layer in _layers(model, targets, ignore).items():
            matrix = layer.matrix
            assert isinstance(matrix, KMatrix)
            try:
                new = made.get(id(matrix)) or quantized(matrix)
            except StructureError:
                continue  # complex numbers, or more inputs than sums have room for
            made[id(matrix)] = new
            swaps.append(MatrixSwap(layer, matrix, new))
            errors[path] = _error(new, matrix)
        for path, head in heads.items():
            swap, errors[path] = to_int8(head)
            swaps.append(swap)
        if not errors:
            raise MatchError("no layer here can be quantized: their weights are complex, or too wide")
        for target in targets:
            if not any(matching((target,), _names(path, model.get_submodule(path))) for path in errors):
                warnings.warn(f"the target {target!r} is no layer that can be quantized", stacklevel=3)
        swap_all(swaps)
        done += swaps
        _note(model, before, sizes, errors, begun, list(heads))
    except BaseException:
        undo_all(done)
        attach(model, before)
        raise
    return errors, done


def _listed(names: Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _dense_rule(targets: Sequence[str], ignore: Sequence[str]) -> Rule:
    try:
        parts = [
            Replacement(
                find=kind.name,
                targets=tuple(targets),
                ignore=(*ignore, *_READ),
                where=Where(read=False, in_features=f"<={LONGEST}"),
                **{"with": Dense()},  # type: ignore[arg-type]
                start="exact",
            )
            for kind in site_kinds()
            if kind.is_dense
        ]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        why = first["msg"].removeprefix("Value error, ")
        raise RuleError(
            f"targets or ignore of quantize: {first['input']!r}: {why}; give a path, a class name, or re: "
            "and an expression that matches whole paths"
        ) from error
    return Rule(name="int8", replace=tuple(parts))


def _layers(
    model: nn.Module, targets: Sequence[str], ignore: Sequence[str]
) -> dict[str, KLinear | KPointwiseConv]:
    """K-layers in floating numbers that are asked for, by path; not those that make a parameter, whose
    matrix is multiplied out in every call."""
    record = record_of(model)
    operations = record.operations if record is not None else []
    holders = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    made = {id(m) for o in operations if o.parameter for m in replacements_of(model, o)}
    found = {}
    for path, module in model.named_modules():
        if not isinstance(module, (KLinear, KPointwiseConv)) or not isinstance(module.matrix, KMatrix):
            continue
        if id(module) in made or any(holders[id(p)] > 1 for p in module.matrix.parameters()):
            continue  # makes a parameter, or is tied to others
        found[path] = module
    return _asked(found, targets, ignore)


def _asked(layers: dict[str, _Layer], targets: Sequence[str], ignore: Sequence[str]) -> dict[str, _Layer]:
    names = {path: _names(path, layer) for path, layer in layers.items()}
    return {
        path: layer
        for path, layer in layers.items()
        if (not targets or matching(tuple(targets), names[path])) and not matching(tuple(ignore), names[path])
    }


def _names(path: str, layer: nn.Module) -> tuple[str, ...]:
    """What a target may call a layer: its path, its class, and the class of the layer that it replaced."""
    shell = vars(layer).get("shell")
    return (path, type(layer).__name__, *(() if shell is None else (type(shell).__name__,)))


@torch.no_grad()
def _error(new: Int8Matrix, old: KMatrix) -> float:
    factors = list(old._held())
    is_dense = len(factors) == 1 and old.side is None and old.groups == 1 and not old.is_padded
    dense = (factors[0][0, 0] if is_dense and factors[0].shape[:2] == (1, 1) else old.to_dense()).double()
    size = float(dense.norm())
    return float((new.to_dense().double() - dense).norm()) / size if size else 0.0


def _note(
    model: nn.Module,
    before: Record | None,
    sizes: tuple[int, int],
    errors: dict[str, float],
    begun: Record | None,
    heads: Sequence[str],
) -> None:
    """Write the patterns of the int8 factors into the record, and what is true of the model now.

    ``before`` is the record as it was, ``sizes`` were parameters and bytes, ``errors`` those of the layers,
    ``begun`` is one for a model without any, ``heads`` are the tied layers.
    """
    record = current_record(model) or begun
    if record is None:
        return
    record.int8_tied += heads
    for operation in record.operations:
        for layer in replacements_of(model, operation):
            matrix = getattr(layer, "matrix", None)
            if isinstance(matrix, Int8Matrix):
                operation.int8 = matrix.chains
                operation.parameters_after = count_parameters(layer)
                if operation.start == "exact":
                    operation.weight_error = errors.get(operation.path, operation.weight_error)
                    operation.output_error = None
    layers = [m for m in model.modules() if isinstance(m, Int8Matrix)]
    past = before.outcome if before is not None else None
    past = past or Outcome(parameters=(sizes[0], 0), bytes=(sizes[1], 0))
    record.outcome = Outcome(
        parameters=(past.parameters[0], count_parameters(model)),
        bytes=((past.bytes or sizes[1:] * 2)[0], count_bytes(model)),
        parts=[part for part in past.parts if not part.endswith((_PART, _TIED))]
        + [f"{len(layers)}{_PART}"] * bool(layers)
        + [f"{len(record.int8_tied)}{_TIED}"] * bool(record.int8_tied),
        found=past.found or (record.outcome.found if record.outcome is not None else []),
    )
    attach(model, record)
