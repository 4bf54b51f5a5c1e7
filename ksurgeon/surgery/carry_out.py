"""Find, plan, operate, verify: a conversion in the precision that a model has."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import isfinite

import torch
from torch import Tensor, nn

from ksurgeon.calibrate import Data, open_data
from ksurgeon.errors import MatchError, SurgeryError, WeightsError
from ksurgeon.find import Finder, Site, open_finder
from ksurgeon.find.inputs import ExampleInputs, require_weights
from ksurgeon.kernels import chosen_backend
from ksurgeon.models.source import Source
from ksurgeon.rules.plan import Decision, Plan, describe_parts, require_matches
from ksurgeon.rules.schema import Rule
from ksurgeon.rules.select import Selection
from ksurgeon.site_kinds import site_kind
from ksurgeon.surgery.conversion import Conversion, Result
from ksurgeon.surgery.current import current_record
from ksurgeon.surgery.inserted import called_alike
from ksurgeon.surgery.operate import Swap, prepare, swap_all, undo_all
from ksurgeon.surgery.readable import NOT_FOUND_AGAIN, finds_again, require_builds
from ksurgeon.surgery.record import (
    Found,
    Operation,
    Outcome,
    Record,
    attach,
    describe_inputs,
)
from ksurgeon.surgery.recorded import source_of
from ksurgeon.surgery.replacements import Progress, build_replacements
from ksurgeon.surgery.sizes import count_bytes, count_parameters
from ksurgeon.surgery.verify import (
    amplified,
    is_exact,
    output_change,
    outputs_and_errors,
    require_steady,
)

__all__ = ["carry_out", "extended_record"]


def carry_out(
    model: nn.Module,
    selection: Selection,
    example_inputs: ExampleInputs | None,
    *,
    source: str | Source | None = None,
    data: Data | None = None,
    examples: int = 512,
    tokenizer: str | None = None,
    max_length: int = 128,
    compensate: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Conversion:
    """What ``convert`` does before weights are quantized; it tells of arguments, warnings and errors."""
    chosen_backend()  # what the environment asks for is there, before the fit
    require_weights(model)
    origin, batches = source_of(model, source), None
    if data is not None:
        batches = open_data(
            data,
            model,
            examples=examples,
            tokenizer=tokenizer,
            max_length=max_length,
            source=origin,
            example_inputs=example_inputs,
        )
        example_inputs = example_inputs if example_inputs is not None else batches.example
    finder, plan, rule = _decide(model, selection, example_inputs)
    example_inputs = finder.example_inputs
    require_matches(plan, finder.sites)
    for messages in plan.unmatched_names.values():
        warnings.warn("; ".join(messages), stacklevel=3)
    pairs = _pair(plan, finder.all_sites)
    record = extended_record(model, origin, source is not None, example_inputs)
    if any(not site_kind(site.kind).has_weight for _, site in pairs) and not finds_again(model, record):
        record.inputs = None
        if source is not None:  # it is to be saved
            raise SurgeryError(NOT_FOUND_AGAIN)
        warnings.warn(f"ksurgeon.save will refuse this model: {NOT_FOUND_AGAIN}", stacklevel=3)
    _require_finite(model, [site for _, site in pairs])
    built = build_replacements(
        model, pairs, batches=batches, compensate=compensate, harm=plan.harm, seed=seed, progress=progress
    )
    replacements = [(site, new.module) for (_, site), new in zip(pairs, built, strict=True)]
    swaps, paths = prepare(model, finder, replacements)
    before, output_errors = outputs_and_errors(model, example_inputs, replacements)
    record.rules.append(plan.rule)
    record.seed = seed
    stage = record.stages
    results = []
    for (decision, site), new in zip(pairs, built, strict=True):
        assert decision.structure is not None and decision.start is not None
        output_error = output_errors.get(site.path)
        results.append(
            Result(
                path=paths[site.path],
                site=site,
                structure=str(decision.structure),
                start=decision.start,
                parameters_before=decision.parameters_before,
                parameters_after=decision.parameters_after,
                weight_error=new.error,
                output_error=output_error,
                seconds=new.seconds,
            )
        )
        record.operations.append(
            Operation.of(
                site,
                decision,
                calibrated=new.calibrated,
                permutation=new.permutation,
                stage=stage,
                weight_error=new.error,
                output_error=output_error,
            )
        )
    parameters, size = count_parameters(model), count_bytes(model)
    change, warning = _swap_and_verify(model, example_inputs, swaps, results, before)
    record.warnings += [warning] if warning else []
    record.outcome = Outcome(
        parameters=(parameters, count_parameters(model)),
        bytes=(size, count_bytes(model)),
        parts=describe_parts(plan, rule),
        found=_found(plan),
        output_change=change if change is None or isfinite(change) else None,
    )
    attach(model, record)
    return Conversion(model, plan, finder.sites, results, record, change, swaps, example_inputs)


def _swap_and_verify(
    model: nn.Module,
    example_inputs: ExampleInputs | None,
    swaps: Sequence[Swap],
    results: Sequence[Result],
    before: Sequence[Tensor],
) -> tuple[float | None, str]:
    """Change of the outputs, and what the user has to be told; a model that is refused is as it was."""
    swap_all(swaps)
    try:
        with called_alike(swaps):
            change = output_change(model, example_inputs, before)
    except BaseException:
        undo_all(swaps)
        raise
    exact = all(result.start == "exact" for result in results)
    if change is None or is_exact(change, before) or (not exact and isfinite(change)):
        return change, ""
    undo_all(swaps)
    errors = [result.output_error for result in results]
    size = 0.0 if exact else max((error for error in errors if error is not None), default=0.0)
    amplification = amplified(model, example_inputs, [result.site.owner for result in results], before, size)
    require_steady(change, before, errors if exact else (), amplification)
    swap_all(swaps)
    return change, (
        "the outputs are not those of the original, and cannot be: it decides by comparing numbers, and "
        f"noise as small as the errors of the replacements changes them by {amplification:.1e}, too"
    )


def _decide(
    model: nn.Module, selection: Selection, example_inputs: ExampleInputs | None
) -> tuple[Finder, Plan, Rule | None]:
    """The plan, from the sites of the kinds that are asked for; from all, where a message is to name them."""
    finder = open_finder(model, example_inputs, selection.kinds)
    with suppress(MatchError), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of an ignore that matches nothing
        with suppress(UserWarning):
            plan, rule = selection.decide(model, finder.all_sites)
            if plan.replacements and not plan.unmatched_names:
                return finder, plan, rule
    finder = Finder(model, finder.example_inputs)
    return finder, *selection.decide(model, finder.all_sites)


def _found(plan: Plan) -> list[Found]:
    found: dict[str, Found] = {}
    for decision in plan.decisions:
        entry = found.setdefault(decision.kind, Found(kind=decision.kind, found=0, replaced=0))
        entry.found += 1
        if decision.action == "replace":
            entry.replaced += 1
        else:
            entry.left[decision.reason] = entry.left.get(decision.reason, 0) + 1
    return list(found.values())


def _pair(plan: Plan, sites: Sequence[Site]) -> list[tuple[Decision, Site]]:
    """Every decision that replaces something with its site, along the dimension that the decision says."""
    known = {(site.path, site.kind): site for site in sites}
    found = [(decision, known[decision.path, decision.kind]) for decision in plan.replacements]
    return [(d, site if d.dim is None else replace(site, dim=d.dim)) for d, site in found]


def _require_finite(model: nn.Module, sites: Sequence[Site]) -> None:
    bad = [
        site.path
        for site in sites
        if site_kind(site.kind).has_weight and not bool(_weight(model, site).isfinite().all())
    ]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise WeightsError(
            f"weights that are NaN or infinite: {', '.join(bad[:5])}{more}; "
            "load sound weights, or let the rule ignore these layers"
        )


def _weight(model: nn.Module, site: Site) -> Tensor:
    """Of the site as it stands; empty where its module computes it."""
    holder, name = (site.owner, site.parameter) if site.parameter else (site.path, "weight")
    weight = model.get_submodule(holder)._parameters.get(name)
    return torch.empty(0) if weight is None else weight.detach()


def extended_record(
    model: nn.Module, origin: Source | None, is_given: bool, example_inputs: ExampleInputs | None
) -> Record:
    """The model's record so far, or a new one; an origin that was given has to build the model."""
    present = current_record(model)
    if present is not None:
        present.inputs = present.inputs or describe_inputs(example_inputs)
        return present
    record = Record.begin(model)
    record.inputs = describe_inputs(example_inputs)
    record.source = origin
    if is_given and (origin is None or origin.is_trusted):
        require_builds(record.source, record.architecture)
    if record.source is not None and record.source.weights_note:
        record.warnings.append(record.source.weights_note)
    return record
