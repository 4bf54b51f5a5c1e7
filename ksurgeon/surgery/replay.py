"""Do again to a fresh architecture what a record says was done to a model."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from ksurgeon.errors import KsurgeonError, RecordError, StructureError
from ksurgeon.find import Finder, Site
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.int8 import Int8Matrix
from ksurgeon.kmatrix.int8_tied import TiedInt8Linear
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.rules.plan import structure_cost
from ksurgeon.site_kinds import site_kind
from ksurgeon.surgery.folded import FoldedNorm, FoldSwap, why_not
from ksurgeon.surgery.operate import ClassSwap, Swap, prepare, swap_all, undo_all
from ksurgeon.surgery.record import Folded, Operation, Record, inputs_from

__all__ = ["replay"]


def replay(model: nn.Module, record: Record, room: int | None = None) -> list[Swap]:
    """Put the K-modules of a record in place; their values are to be loaded afterwards.

    Args:
        model: an unconverted model, changed in place.
        record: what was done to such a model.
        room: how many numbers there are to be loaded; a record whose K-modules take more is damaged.

    Returns:
        What was done, in order.

    Raises:
        RecordError: the model does not have what the record operated on; it is then as it was.
    """
    done: list[Swap] = []
    try:
        for swaps in _stages(model, record, room):
            swap_all(swaps)
            done += swaps
        if max(Counter(p for each in record.folded for p in (each.layer, each.norm)).values(), default=1) > 1:
            raise RecordError("the record folds a layer twice: it is damaged; convert the model again")
        for each in record.folded:
            swap = FoldSwap(*_folded(model, each), has_values=False)
            swap_all([swap])
            done.append(swap)
        for path in record.int8_tied:
            tied = ClassSwap(_linear(model, path), nn.Linear, TiedInt8Linear)
            swap_all([tied])
            done.append(tied)
    except BaseException as error:
        undo_all(done)
        if isinstance(error, KsurgeonError) or not isinstance(error, Exception):
            raise
        raise RecordError(
            f"the record does not fit this {type(model).__name__}: {type(error).__name__}: {error}"
        ) from error
    return done


def _stages(model: nn.Module, record: Record, room: int | None) -> Iterator[Sequence[Swap]]:
    """Swaps to be done before the next ones are asked for."""
    twice = Counter((o.path, o.kind, o.stage) for o in record.operations).most_common(1)
    if twice and twice[0][1] > 1:
        raise RecordError(
            f"the record replaces {twice[0][0][0]!r} twice: it is damaged; convert the model again"
        )
    for stage in sorted({operation.stage for operation in record.operations}):
        operations = [operation for operation in record.operations if operation.stage == stage]
        inside = any(not site_kind(operation.kind).has_weight for operation in operations)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        if inside and record.inputs is None:
            raise RecordError(
                "the record does not describe the example inputs that its maps inside a forward were found "
                "with"
            )
        finder = Finder(model, inputs_from(record.inputs, device) if inside and record.inputs else None)
        known = {(site.path, site.kind): site for site in finder.all_sites}
        replacements: list[tuple[Site, nn.Module]] = []
        for operation in operations:
            kind = site_kind(operation.kind)
            site = known.get((operation.path, kind.name)) or kind.recorded_site(model, operation)
            if site is None or not _fits(site, operation):
                raise RecordError(
                    f"the record replaces {operation.kind} {operation.path!r}, which this model does not "
                    "have; it was made with another version of the model's code"
                )
            site = replace(site, dim=operation.dim)
            room = _left(room, site, operation)
            replacements.append((site, _rebuild(model, site, operation)))
        swaps, _ = prepare(model, finder, replacements)
        yield swaps


def _folded(model: nn.Module, folded: Folded) -> tuple[nn.Module, nn.Module]:
    """A layer and the norm that it does."""
    try:
        layer, norm = model.get_submodule(folded.layer), model.get_submodule(folded.norm)
        as_then = (layer.bias is not None) == folded.had_bias and not isinstance(norm, FoldedNorm)
        if as_then and why_not(layer, norm, is_loaded=True) is None:
            return layer, norm
    except AttributeError:
        pass
    raise RecordError(
        f"the record folds {folded.norm!r} into {folded.layer!r}, which this model does not have so: it is "
        "damaged, or was made with another version of the model's code"
    )


def _linear(model: nn.Module, path: str) -> nn.Module:
    """The layer of a path, which is an ``nn.Linear``."""
    try:
        if type(layer := model.get_submodule(path)) is nn.Linear:
            return layer
    except AttributeError:
        pass
    raise RecordError(
        f"the record computes {path!r} in int8, which is no nn.Linear of this model: it is damaged, or was "
        "made with another version of the model's code"
    )


def _fits(site: Site, operation: Operation) -> bool:
    """Whether the site is what the operation was done to; earlier records may not tell ``ndim``."""
    known = None if site_kind(operation.kind).inserts else operation.permutation  # which data told
    same = (site.permutation, site.facts) == (known, operation.facts)
    return same and site.is_along(operation.dim) and operation.ndim in (0, site.ndim)


def _left(room: int | None, site: Site, operation: Operation) -> int | None:
    """What is left of ``room`` once the K-module stands, whose size is known before it is made."""
    try:
        after, _ = structure_cost(site, operation.structure, operation.parts)
        if operation.int8:
            after = sum(pattern.numel for chain in operation.int8 for pattern in chain)
    except StructureError as error:
        raise RecordError(
            f"the record is damaged: {operation.path!r} cannot be replaced so: {error}"
        ) from error
    if room is None or operation.form == "dense":
        return room
    room -= after - (0 if operation.int8 else site.parameters - site.weight_parameters)
    if room < 0:
        raise RecordError(
            f"the K-modules up to {operation.path!r} have more numbers than the tensors beside the record: "
            "one of them is damaged; convert the model again"
        )
    return room


def _rebuild(model: nn.Module, site: Site, operation: Operation) -> nn.Module:
    kind = site_kind(operation.kind)
    new = kind.build(model, replace(site, parts=operation.parts), operation.structure, "empty")
    if not kind.has_weight:
        new.site = site.path  # type: ignore[assignment]
    if operation.int8 and operation.form != "dense":
        _to_int8(new, operation)
    return kind.to_dense(new, site.ndim) if operation.form == "dense" else new


def _to_int8(layer: nn.Module, operation: Operation) -> None:
    """Let a K-layer have int8 factors, whose values are to be loaded."""
    if not isinstance(layer, (KLinear, KPointwiseConv)) or operation.parameter:
        raise RecordError(
            f"the record has a {type(layer).__name__} {operation.path!r} in int8: it is damaged"
        )
    old, like = layer.matrix, layer.matrix.like
    layer._modules["matrix"] = Int8Matrix(
        old.in_features,
        old.out_features,
        groups=old.groups,
        structure=old.structure,
        chains=operation.int8,
        device=like.device,
        dtype=like.dtype,
    )
