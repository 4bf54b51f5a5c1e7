"""Do again to a fresh architecture what a record says was done to a model."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from ksurgeon.errors import RecordError
from ksurgeon.find import Finder, Site
from ksurgeon.surgery.activation import replay_fusions
from ksurgeon.surgery.kinds import KINDS
from ksurgeon.surgery.operate import Swap, prepare, swap_all, undo_all
from ksurgeon.surgery.record import Operation, Record, inputs_from

__all__ = ["replay"]


def replay(model: nn.Module, record: Record) -> list[Swap]:
    """Put the K-modules of a record in place; their values are to be loaded afterwards.

    Returns:
        What was done, in order.

    Raises:
        RecordError: the model does not have what the record operated on; it is then as it was.
    """
    done: list[Swap] = []
    try:
        for swaps in _stages(model, record):
            swap_all(swaps)
            done += swaps
    except BaseException:
        undo_all(done)
        raise
    return done


def _stages(model: nn.Module, record: Record) -> Iterator[Sequence[Swap]]:
    """Swaps to be done before the next ones are asked for."""
    for stage in range(record.stages):
        operations = [operation for operation in record.operations if operation.stage == stage]
        inside = any(KINDS[operation.kind].is_original is not None for operation in operations)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        if inside and record.inputs is None:
            raise RecordError(
                "the record does not describe the example inputs that its maps inside a forward were found "
                "with"
            )
        finder = Finder(model, inputs_from(record.inputs, device) if inside and record.inputs else None)
        known = {(site.path, site.kind): site for site in finder.sites}
        replacements: list[tuple[Site, nn.Module]] = []
        for operation in operations:
            site = known.get((operation.path, operation.kind)) or _parameter(model, operation)
            there = (operation.permutation, operation.dim, operation.facts)
            if site is None or (site.permutation, site.dim, site.facts) != there:
                raise RecordError(
                    f"the record replaces {operation.kind} {operation.path!r}, which this model does not "
                    "have; it was made with another version of the model's code"
                )
            replacements.append((site, _rebuild(model, site, operation)))
        swaps, _ = prepare(model, finder, replacements)
        yield swaps
        yield replay_fusions(model, operations)


def _parameter(model: nn.Module, operation: Operation) -> Site | None:
    """The site of a parameter, which only a run would find."""
    try:
        shape = model.get_parameter(operation.path).shape if operation.parameter else None
    except AttributeError:
        return None
    if shape is None or len(shape) != 2:
        return None
    out_features, in_features = shape[::-1] if operation.facts.get("transposed") else shape
    return Site(
        kind=operation.kind,
        path=operation.path,
        owner=operation.path.removesuffix(operation.parameter).removesuffix("."),
        in_features=in_features,
        out_features=out_features,
        parameter=operation.parameter,
        facts=operation.facts,
    )


def _rebuild(model: nn.Module, site: Site, operation: Operation) -> nn.Module:
    kind = KINDS[operation.kind]
    new, _ = kind.build(model, replace(site, parts=operation.parts), operation.structure, "empty")
    if kind.is_original is not None:
        new.site = site.path  # type: ignore[assignment]
    return kind.dense(new, site.ndim) if operation.form == "dense" else new
