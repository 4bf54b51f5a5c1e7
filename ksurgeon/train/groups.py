"""The sites of a converted model in groups, and the surgery on one group."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ksurgeon.rules.plan import Decision, Plan
from ksurgeon.rules.schema import SiteStart
from ksurgeon.site_kinds import site_kind
from ksurgeon.surgery.conversion import Conversion
from ksurgeon.surgery.convert import convert
from ksurgeon.surgery.record import Operation, Record, inputs_from, record_of

__all__ = ["Order", "operate_on_group", "operations_in_groups"]

Order = Literal["harmless", "back"]
"""Which sites come first: those whose outputs changed least, or the last of the network."""


def operations_in_groups(operations: Sequence[Operation], count: int, order: Order) -> list[list[Operation]]:
    """At most ``count`` groups; maps inside a forward are all in the first, as a forward is changed once."""
    first = [o for o in operations if not site_kind(o.kind).has_weight]
    rest = [o for o in operations if site_kind(o.kind).has_weight]
    if order == "back":
        rest.reverse()
    else:
        rest.sort(key=lambda o: o.output_error if o.output_error is not None else o.weight_error or 0.0)
    count = max(1, min(count, len(rest)))
    cuts = [round(len(rest) * part / count) for part in range(count + 1)]
    parts = [rest[begin:end] for begin, end in pairwise(cuts)]
    parts[0] = first + parts[0]
    return [part for part in parts if part]


def operate_on_group(
    model: nn.Module, student: nn.Module, record: Record, operations: Sequence[Operation]
) -> Conversion:
    """Do to ``model`` some of the operations in the record of ``student``, and copy the student's values."""
    decisions = [
        Decision(
            path=operation.path,
            kind=operation.kind,
            action="replace",
            reason="gradual surgery",
            structure=operation.structure,
            start=_start(operation),
            parts=operation.parts,
            dim=operation.dim if site_kind(operation.kind).inserts else None,
            parameters_before=operation.parameters_before,
            parameters_after=operation.parameters_after,
            multiplications_before=0,
            multiplications_after=0,
        )
        for operation in operations
    ]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    inputs = inputs_from(record.inputs, device) if record.inputs is not None else None
    plan = Plan(rule=", ".join(record.rules), decisions=decisions)
    conversion = convert(model, plan, inputs, source=record.source)
    for result in conversion.results:
        _copy_values(model.get_submodule(result.path), student, result.path)
    own = record_of(model)
    assert own is not None
    known = {o.path: o for o in operations}
    for operation in own.operations:
        if (its := known.get(operation.path)) is not None:
            operation.start, operation.permutation = its.start, its.permutation
            operation.calibrated = its.calibrated or bool(record.trainings)
            operation.weight_error, operation.output_error = its.weight_error, its.output_error
    return conversion


def _start(operation: Operation) -> SiteStart:
    """Values are copied, whatever the start; without a weight not every structure can be the identity."""
    kind = site_kind(operation.kind)
    if operation.start != "exact" and kind.has_weight and "identity" in kind.starts:
        return "identity" if operation.structure.is_chain else "random"
    return cast(SiteStart, operation.start)


def _copy_values(module: nn.Module, student: nn.Module, path: str) -> None:
    try:
        fitted = student.get_submodule(path).state_dict()
    except AttributeError:
        return  # a map inside a forward, exact in both
    own: dict[str, Tensor] = module.state_dict()
    if {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in fitted.items()}:
        module.load_state_dict(fitted)
