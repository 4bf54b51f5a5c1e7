"""Batch norms folded into the layers before them, and taken out again."""

from collections import Counter

from torch import Tensor, nn

from ksurgeon.errors import InputError, MatchError, SurgeryError
from ksurgeon.find import Finder, open_finder
from ksurgeon.find.inputs import ExampleInputs, require_weights
from ksurgeon.find.layers import paths_of
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.surgery.carry_out import extended_record
from ksurgeon.surgery.current import current_record
from ksurgeon.surgery.folded import FoldSwap, scale_and_shift
from ksurgeon.surgery.operate import swap_all, undo_all
from ksurgeon.surgery.record import Folded, Outcome, attach, record_of
from ksurgeon.surgery.recorded import source_of
from ksurgeon.surgery.sizes import count_bytes, count_parameters
from ksurgeon.surgery.verify import is_exact, output_change, outputs_and_errors

__all__ = ["fold", "fold_norms", "unfold"]

# Classes whose forward is known; a subclass may do anything with its weight.
_NORMS = {
    "torch.nn.modules.batchnorm.BatchNorm1d",
    "torch.nn.modules.batchnorm.BatchNorm2d",
    "torch.nn.modules.batchnorm.BatchNorm3d",
    "torchvision.ops.misc.FrozenBatchNorm2d",
    "timm.layers.norm_act.BatchNormAct2d",
}
_DENSE = {
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.conv.Conv1d",
    "torch.nn.modules.conv.Conv2d",
    "torch.nn.modules.conv.Conv3d",
    "timm.layers.conv2d_same.Conv2dSame",
}
_LEAST = 1e-12  # a channel that is multiplied by less could not be taken out again
_PART = " batch norms folded into the layers before them"


def fold(model: nn.Module, example_inputs: ExampleInputs | None = None) -> dict[str, str]:
    """Let convolutions and linear layers do the batch norms behind them, in place, for inference.

    In eval mode a batch norm multiplies each channel by a number and adds another one, which the layer before
    it can do with its weight and its bias, at no cost. K-layers and dense ones are treated alike. The
    outputs stay the same but for rounding, which is checked. The model is saved, loaded and exported so;
    ``unfold``, and ``revert``, take the norms out again. In a training the folded norms stay what they are in
    eval mode: unfold the model first if they are to be trained.

    A norm is left alone where its input goes anywhere else, too; where the forward around it depends on its
    inputs' sizes or entries; where one of the two is called more than once; where a channel is multiplied
    by zero; or where the layer is quantized, is trained by angles, has hooks, or shares its weight.

    Args:
        model: in eval mode; changed in place. A call that raises leaves it as it was.
        example_inputs: as for ``find``; the model is run on them, and the outputs are compared.

    Returns:
        For the path of every norm that was folded that of its layer.

    Raises:
        InputError: the model is in training mode, does not run on the inputs, or none were given and none
            that fit can be guessed.
        MatchError: there is no batch norm that can be folded.
        SurgeryError: the outputs would change by more than rounding does.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
        >>> ksurgeon.fold(model, torch.randn(2, 3, 8, 8))
        {'1': '0'}
    """
    return {norm: layer for layer, norm in fold_norms(model, example_inputs)[0]}


def fold_norms(
    model: nn.Module, example_inputs: ExampleInputs | None = None
) -> tuple[list[tuple[str, str]], list[FoldSwap]]:
    """What ``fold`` did: paths of layers and norms, and the swaps."""
    require_weights(model)
    if model.training:
        raise InputError("batch norms are folded for inference: call model.eval() first")
    finder = open_finder(model, example_inputs)
    if finder.recording is None:
        raise InputError("give example_inputs: what stands before a batch norm only a run of the model tells")
    pairs = _pairs(finder)
    if not pairs:
        raise MatchError("there is no batch norm here that a layer before it could do; see ksurgeon.fold")
    get = model.get_submodule
    swaps = [FoldSwap(get(layer), get(norm)) for layer, norm in pairs]
    present, sizes = record_of(model), (count_parameters(model), count_bytes(model))
    before, _ = outputs_and_errors(model, finder.example_inputs, ())
    record = extended_record(model, source_of(model), False, finder.example_inputs)
    swap_all(swaps)
    try:
        change = output_change(model, finder.example_inputs, before)
        if change is not None and not is_exact(change, before):
            raise SurgeryError(
                f"the outputs would change by {change:.1e} relative; the model was restored. Please report it"
            )
        record.folded += [
            Folded(layer=layer, norm=norm, had_bias=swap.had_bias)
            for (layer, norm), swap in zip(pairs, swaps, strict=True)
        ]
        past = record.outcome or Outcome(parameters=(sizes[0], 0), bytes=(sizes[1], 0))
        record.outcome = past.model_copy(
            update={
                "parameters": (past.parameters[0], count_parameters(model)),
                "bytes": ((past.bytes or (sizes[1], 0))[0], count_bytes(model)),
                "parts": [*(p for p in past.parts if not p.endswith(_PART)), f"{len(record.folded)}{_PART}"],
                **dict.fromkeys(("latency", "latency_quartiles")),
            }
        )
        attach(model, record)
    except BaseException:
        undo_all(swaps)
        attach(model, present)
        raise
    return pairs, swaps


def unfold(model: nn.Module) -> nn.Module:
    """Take folded batch norms out of the layers again, in place, and return the model.

    It computes the same but for rounding, also where layers were trained since.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
        >>> _ = ksurgeon.fold(model, torch.randn(2, 3, 8, 8))
        >>> type(ksurgeon.unfold(model)[1]).__name__
        'BatchNorm2d'
    """
    record = current_record(model)
    if record is None or not record.folded:
        return model
    for each in record.folded:
        layer, norm = model.get_submodule(each.layer), model.get_submodule(each.norm)
        FoldSwap(layer, norm, had_bias=each.had_bias).invert()
    record.folded = []
    if record.outcome is not None:
        parts = [part for part in record.outcome.parts if not part.endswith(_PART)]
        numbers = (record.outcome.parameters[0], count_parameters(model))
        record.outcome = record.outcome.model_copy(update={"parts": parts, "parameters": numbers})
    attach(model, record)
    return model


def _pairs(finder: Finder) -> list[tuple[str, str]]:
    """Paths of layers and of the norms behind them, in the order of the model's modules."""
    model, recording = finder.model, finder.recording
    assert recording is not None
    paths = paths_of(model)
    holders = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    found: list[tuple[str, str]] = []
    for owner, trace in finder.traces.items():
        if trace.decided or trace.fixed or trace.real:
            continue
        prefix = f"{owner}." if owner else ""
        for node in trace.graph.nodes:
            if node.op != "call_module" or len(node.users) != 1:
                continue
            (behind,) = node.users
            if behind.op != "call_module" or behind.args != (node,) or behind.kwargs:
                continue
            names = [prefix + str(each.target) for each in (node, behind)]
            layer, norm = (model.get_submodule(name) for name in names)
            once = all(recording.counts[id(m)] == 1 == len(paths[id(m)]) for m in (layer, norm))
            alone = all(holders[id(p)] == 1 for m in (layer, norm) for p in m.parameters())
            if once and alone and _can_be_folded(layer, norm, behind.meta["value"].dim()):
                found.append((names[0], names[1]))
    order = {path: number for number, (path, _) in enumerate(model.named_modules())}
    return sorted(found, key=lambda pair: order[pair[1]])


def _can_be_folded(layer: nn.Module, norm: nn.Module, ndim: int) -> bool:
    mean = getattr(norm, "running_mean", None)
    if _name(norm) not in _NORMS or norm.training or not isinstance(mean, Tensor):
        return False
    if any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in (layer, norm)):
        return False
    linear = isinstance(layer, (nn.Linear, KLinear))
    if isinstance(layer, (KLinear, KPointwiseConv)):
        matrix: KMatrix | None = layer.matrix
        while matrix is not None:
            if type(matrix) is not KMatrix or type(matrix.factors) is not nn.ParameterList:
                return False
            if matrix.factors._forward_pre_hooks:
                return False
            matrix = matrix.side
        weight = layer.matrix.like
    elif _name(layer) in _DENSE and isinstance(layer.weight, Tensor):
        weight = layer.weight
    else:
        return False
    outputs = layer.out_features if linear else layer.out_channels
    if weight.is_complex() or (linear and ndim != 2) or outputs != len(mean):
        return False
    scale, shift = scale_and_shift(norm)
    return bool((scale.abs() > _LEAST).all() and scale.isfinite().all() and shift.isfinite().all())


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
