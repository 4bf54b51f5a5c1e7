"""Find, plan, operate, verify: one call that converts a model."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ksurgeon.calibrate import Data, open_data
from ksurgeon.errors import WeightsError
from ksurgeon.find import Site, open_finder
from ksurgeon.find.inputs import ExampleInputs
from ksurgeon.models.opening import resolve_source
from ksurgeon.models.source import Source
from ksurgeon.rules.files import checked_plan
from ksurgeon.rules.load import load_rule
from ksurgeon.rules.plan import Decision, Plan, describe_parts, make_plan, require_matches
from ksurgeon.rules.schema import Rule
from ksurgeon.surgery.activation import find_fusions
from ksurgeon.surgery.build import site_weight
from ksurgeon.surgery.conversion import Conversion, Result
from ksurgeon.surgery.current import current_record
from ksurgeon.surgery.kinds import KINDS
from ksurgeon.surgery.operate import Swap, prepare, swap_all, undo_all
from ksurgeon.surgery.record import (
    Found,
    Operation,
    Outcome,
    Record,
    attach,
    describe_inputs,
)
from ksurgeon.surgery.replacements import Progress, build_replacements
from ksurgeon.surgery.verify import (
    amplified,
    is_exact,
    output_change,
    outputs_and_errors,
    require_steady,
)

__all__ = ["convert", "replace_modules"]


def convert(
    model: nn.Module,
    rule: str | Path | Rule = "linear",
    example_inputs: ExampleInputs | None = None,
    *,
    source: str | Source | None = None,
    plan: Plan | None = None,
    data: Data | None = None,
    examples: int = 512,
    tokenizer: str | None = None,
    compensate: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    fuse_activations: bool = True,
) -> Conversion:
    """Replace linear maps of a model by K-matrices, in place, as a rule says.

    Args:
        model: any module. A call that raises leaves it as it was.
        rule: name of a built-in rule, a rule file, or a ``Rule``.
        example_inputs: as for ``find``; the operation is verified on them.
        source: where the architecture comes from (``"torchvision:resnet18"``, ``"package.module:function"``),
            for the record; found out for models of timm, torchvision and transformers.
        plan: decisions to carry out in place of those the rule would give; they are checked against the
            model, and counted anew.
        data: what the model takes in real use (see ``calibrate.open_data``): what starts with "fit" is then
            fitted to what its site does on them, not to its weight alone.
        examples, tokenizer: of the data.
        compensate: whether layers fitted to data are fitted front to back, each so that it makes up for the
            errors of those before it; for models whose order of layers does not depend on the data.
        seed: of random starting values.
        progress: called before each site and once at the end.
        fuse_activations: whether K-layers apply the activation module behind them, where the example run
            and the traced forward prove that nothing else sees the layer's output.

    Raises:
        MatchError: the rule matches nothing.
        RuleError: there is no such rule, or it is malformed.
        InputError: the model does not run on the inputs.
        WeightsError: a weight to be replaced is not finite.
        PlanError: the plan does not fit the model.
        SurgeryError: an operation is refused.
    """
    chosen = load_rule(rule) if plan is None else None
    finder = open_finder(model, example_inputs)
    example_inputs = finder.example_inputs
    if plan is None:
        assert chosen is not None
        plan = make_plan(finder.sites, chosen)
    else:
        plan = checked_plan(plan, finder.sites)
    require_matches(plan, finder.sites)
    pairs = _pair(plan, finder.sites)
    _require_finite(model, [site for _, site in pairs])
    batches = None
    if data is not None and any(decision.start == "fit" for decision, _ in pairs):
        batches = open_data(data, model, examples=examples, tokenizer=tokenizer)
    built = build_replacements(
        model, pairs, batches=batches, compensate=compensate, harm=plan.harm, seed=seed, progress=progress
    )
    replacements = [(site, new.module) for (_, site), new in zip(pairs, built, strict=True)]
    swaps, paths = prepare(model, finder, replacements)
    fusions = find_fusions(model, finder, replacements) if fuse_activations else {}
    swaps += fusions.values()
    before, output_errors = outputs_and_errors(model, example_inputs, replacements)
    record = _extended_record(model, source, example_inputs)
    record.rules.append(plan.rule)
    record.seed = seed
    stage = record.stages
    results = []
    for (decision, site), new in zip(pairs, built, strict=True):
        assert decision.structure is not None and decision.start is not None
        output_error, fusion = output_errors.get(site.path), fusions.get(site.path)
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
            Operation(
                path=site.path,
                kind=site.kind,
                structure=decision.structure,
                start=decision.start,
                permutation=site.permutation,
                dim=site.dim,
                ndim=site.ndim,
                groups=site.groups,
                facts=site.facts,
                parameter=site.parameter,
                parts=decision.parts,
                stage=stage,
                parameters_before=decision.parameters_before,
                parameters_after=decision.parameters_after,
                weight_error=new.error,
                output_error=output_error,
                activation=fusion.name if fusion else None,
                activation_path=fusion.path if fusion else "",
            )
        )
    parameters = _count_parameters(model)
    change, warning = _swap_and_verify(model, example_inputs, swaps, results, before)
    record.warnings += [warning] if warning else []
    record.outcome = Outcome(
        parameters=(parameters, _count_parameters(model)),
        parts=describe_parts(plan, chosen),
        found=_found(plan),
        output_change=change if change is None or isfinite(change) else None,
    )
    attach(model, record)
    return Conversion(model, plan, finder.sites, results, record, change, swaps)


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
    amplification = amplified(model, example_inputs, [result.site for result in results], before, size)
    require_steady(change, before, errors if exact else (), amplification)
    swap_all(swaps)
    return change, (
        "the outputs are not those of the original, and cannot be: it decides by comparing numbers, and "
        f"noise as small as the errors of the replacements changes them by {amplification:.1e}, too"
    )


def replace_modules(
    model: nn.Module,
    rule: str | Path | Rule = "linear",
    example_inputs: ExampleInputs | None = None,
    **options: Any,
) -> nn.Module:
    """Replace linear maps of a model by K-matrices, in place, and return the model.

    ``options`` are those of ``convert``, which tells what is raised and returns what was done.
    """
    return convert(model, rule, example_inputs, **options).model


def _count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


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
    known = {(site.path, site.kind): site for site in sites}
    return [(decision, known[decision.path, decision.kind]) for decision in plan.replacements]


def _require_finite(model: nn.Module, sites: Sequence[Site]) -> None:
    bad = [
        site.path
        for site in sites
        if KINDS[site.kind].is_original is None and not bool(site_weight(model, site).isfinite().all())
    ]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise WeightsError(
            f"weights that are NaN or infinite: {', '.join(bad[:5])}{more}; "
            "load sound weights, or let the rule ignore these layers"
        )


def _extended_record(
    model: nn.Module, source: str | Source | None, example_inputs: ExampleInputs | None
) -> Record:
    """The model's record so far, or a new one."""
    present = current_record(model)
    if present is not None:
        return present
    record = Record.begin(model)
    record.inputs = describe_inputs(example_inputs)
    record.source = resolve_source(model, source)
    if record.source is not None and record.source.weights_note:
        record.warnings.append(record.source.weights_note)
    return record
