"""Batch norms folded into the layers before them, and taken out again."""

from collections import Counter
from collections.abc import Sequence

from torch import Tensor, nn

from ksurgeon.errors import InputError, MatchError, SurgeryError
from ksurgeon.find import Finder, open_finder
from ksurgeon.find.inputs import ExampleInputs, require_weights
from ksurgeon.find.layers import paths_of
from ksurgeon.surgery.carry_out import extended_record
from ksurgeon.surgery.current import current_record
from ksurgeon.surgery.folded import FoldedNorm, FoldSwap, dims_of, why_not, why_not_by_values
from ksurgeon.surgery.operate import swap_all, undo_all
from ksurgeon.surgery.readable import require_known
from ksurgeon.surgery.record import Folded, Outcome, attach, record_of
from ksurgeon.surgery.recorded import source_of
from ksurgeon.surgery.sizes import count_bytes, count_parameters
from ksurgeon.surgery.verify import amplified, is_exact, output_change, outputs_and_errors, require_steady

__all__ = ["fold", "fold_norms", "unfold"]

_PART = " batch norms folded into the layers before them"


def fold(model: nn.Module, example_inputs: ExampleInputs | None = None) -> dict[str, str]:
    """Let convolutions and linear layers do the batch norms behind them, in place, for inference.

    In eval mode a batch norm multiplies each channel by a number and adds another one, which the layer before
    it can do with its weight and its bias, at no cost. K-layers and dense ones are treated alike. The
    outputs stay the same but for rounding, which is checked. The model is saved, loaded and exported so;
    ``unfold``, and ``revert``, take the norms out again. In a training the folded norms stay what they are in
    eval mode: unfold the model first if they are to be trained.

    Folded are ``BatchNorm1d`` to ``BatchNorm3d``, those of timm with an activation and torchvision's frozen
    ones, behind ``Conv1d`` to ``Conv3d``, ``Linear`` (of rows) and K-layers. A norm is left alone where its
    input goes anywhere else, too; where the forward around it takes more than one argument or depends on its
    inputs' sizes or entries; where one of the two is called more than once; where a channel is multiplied
    by zero; or where the layer is quantized, is parametrized, has hooks, or shares its weight. What only an
    attribute of a module decides cannot be seen: a forward that passes by the norm where a flag is set.

    Args:
        model: in eval mode; changed in place. A call that raises leaves it as it was.
        example_inputs: as for ``find``; the model is run on them, and the outputs are compared.

    Returns:
        For the path of every norm that was folded that of its layer.

    Raises:
        InputError: the model is in training mode, does not run on the inputs, or none were given and none
            that fit can be guessed.
        MatchError: there is no batch norm that can be folded.
        SurgeryError: the outputs would change by more than rounding changes them.

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
        _require_same(model, finder.example_inputs, swaps, [layer for layer, _ in pairs], before)
        record.folded += [
            Folded(layer=layer, norm=norm, had_bias=bool(swap.had_bias))
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


def _require_same(
    model: nn.Module,
    example_inputs: ExampleInputs | None,
    swaps: list[FoldSwap],
    layers: list[str],
    before: Sequence[Tensor],
) -> None:
    """Return if the outputs changed by no more than rounding changes them."""
    change = output_change(model, example_inputs, before)
    if change is None or is_exact(change, before):
        return
    undo_all(swaps)
    amplification = amplified(model, example_inputs, layers, before, 0.0)
    require_steady(change, before, (), amplification)
    swap_all(swaps)


def unfold(model: nn.Module) -> nn.Module:
    """Take folded batch norms out of the layers again, in place, and return the model.

    It computes the same but for rounding, also where layers were trained since.

    Raises:
        SurgeryError: a layer was changed otherwise since: hooked, wrapped, parametrized or quantized; or a
            folded norm's layer was replaced by another one. The model is as it was.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
        >>> _ = ksurgeon.fold(model, torch.randn(2, 3, 8, 8))
        >>> type(ksurgeon.unfold(model)[1]).__name__
        'BatchNorm2d'
    """
    record = current_record(model)
    swaps = []
    for each in record.folded if record is not None else ():
        layer, norm = model.get_submodule(each.layer), model.get_submodule(each.norm)
        if (why := why_not(layer, norm) or why_not_by_values(layer, norm)) is not None:
            raise SurgeryError(
                f"{each.norm} cannot be taken out of {each.layer} again: {why}; undo first what was done to "
                "the layer since"
            )
        swaps.append(FoldSwap(layer, norm, had_bias=each.had_bias))
    require_known(model, record)
    if record is None or not swaps:
        return model
    for swap in swaps:
        swap.invert()
    record.folded = []
    if record.outcome is not None:
        told = {
            "parts": [part for part in record.outcome.parts if not part.endswith(_PART)],
            "parameters": (record.outcome.parameters[0], count_parameters(model)),
            "bytes": record.outcome.bytes and (record.outcome.bytes[0], count_bytes(model)),
            **dict.fromkeys(("latency", "latency_quartiles")),
        }
        record.outcome = record.outcome.model_copy(update=told)
    attach(model, record)
    return model


def _pairs(finder: Finder) -> list[tuple[str, str]]:
    """Paths of layers and of the norms behind them, in the order of the model's modules."""
    model, recording = finder.model, finder.recording
    assert recording is not None
    paths = paths_of(model)
    holders = Counter(_memory(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    read = {
        id(finder.model.get_submodule(f"{owner}.{node.target}".strip(".").rpartition(".")[0]))
        for owner, trace in finder.traces.items()
        for node in trace.graph.nodes
        if node.op == "get_attr" and "." in str(node.target)
    }
    found: list[tuple[str, str]] = []
    for owner, trace in finder.traces.items():
        taken = sum(node.op == "placeholder" for node in trace.graph.nodes)
        if trace.decided or trace.fixed or trace.real or taken != 1:
            continue  # other inputs or arguments may lead past the norm
        prefix = f"{owner}." if owner else ""
        for node in trace.graph.nodes:
            if node.op != "call_module" or len(node.users) != 1:
                continue
            (behind,) = node.users
            if behind.op != "call_module" or behind.args != (node,) or behind.kwargs:
                continue
            names = [prefix + str(each.target) for each in (node, behind)]
            layer, norm = (model.get_submodule(name) for name in names)
            if norm.training or isinstance(norm, FoldedNorm) or why_not(layer, norm) is not None:
                continue
            once = all(recording.counts[id(m)] == 1 == len(paths[id(m)]) for m in (layer, norm))
            alone = all(holders[_memory(p)] == 1 for m in (layer, norm) for p in m.parameters())
            fits = behind.meta["value"].dim() == dims_of(layer) and id(layer) not in read
            if once and alone and fits and why_not_by_values(layer, norm) is None:
                found.append((names[0], names[1]))
    order = {path: number for number, (path, _) in enumerate(model.named_modules())}
    return sorted(found, key=lambda pair: order[pair[1]])


def _memory(parameter: Tensor) -> int:
    return parameter.untyped_storage().data_ptr() or id(parameter)
