"""Do again to a fresh architecture what a record says was done to a model."""

import torch
from torch import nn

from ksurgeon.errors import RecordError
from ksurgeon.find import Finder, Site
from ksurgeon.kmatrix.shuffle import KChannelShuffle
from ksurgeon.surgery.activation import replay_fusions
from ksurgeon.surgery.build import build_dense, build_layer, build_shuffle
from ksurgeon.surgery.operate import prepare, swap_all
from ksurgeon.surgery.record import Operation, Record, inputs_from

__all__ = ["replay"]


def replay(model: nn.Module, record: Record) -> None:
    """Put the K-modules of a record in place; their values are to be loaded afterwards.

    Raises:
        RecordError: the model does not have what the record operated on.
    """
    for stage in range(record.stages):
        operations = [operation for operation in record.operations if operation.stage == stage]
        inside = any(operation.kind == "channel_shuffle" for operation in operations)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        if inside and record.inputs is None:
            raise RecordError(
                "the record does not describe the example inputs that its shuffles were found with"
            )
        finder = Finder(model, inputs_from(record.inputs, device) if inside and record.inputs else None)
        known = {(site.path, site.kind): site for site in finder.sites}
        replacements: list[tuple[Site, nn.Module]] = []
        for operation in operations:
            site = known.get((operation.path, operation.kind))
            if site is None or (site.permutation, site.dim) != (operation.permutation, operation.dim):
                raise RecordError(
                    f"the record replaces {operation.kind} {operation.path!r}, which this model does not "
                    "have; it was made with another version of the model's code"
                )
            replacements.append((site, _rebuild(model, site, operation)))
        swaps, _ = prepare(model, finder, replacements)
        swap_all(swaps)
        swap_all(replay_fusions(model, operations))


def _rebuild(model: nn.Module, site: Site, operation: Operation) -> nn.Module:
    owner = model.get_submodule(site.owner)
    if site.kind != "channel_shuffle":
        return build_layer(owner, operation.structure)
    assert site.dim is not None and site.permutation is not None
    new: KChannelShuffle = build_shuffle(
        operation.structure,
        site.in_features,
        site.groups,
        site.dim,
        site.permutation,
        "empty",
        model,
        owner.training,
    )
    new.site = site.path
    return build_dense(new, site.ndim) if operation.form == "dense" else new
