"""A plan: for every site of a model one decision, with its reason and what it costs or saves."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from ksurgeon.errors import MatchError, StructureError
from ksurgeon.kmatrix.structures import Butterfly, GroupedKaleidoscope, Structure
from ksurgeon.rules.load import builtin_rules, load_rule
from ksurgeon.rules.schema import Replacement, Rule, Start, holds, matching

if TYPE_CHECKING:
    from ksurgeon.find.site import Site  # imports torch, which listing rules does not need

__all__ = ["Decision", "Plan", "describe_parts", "make_plan", "require_matches", "structure_cost"]


class Decision(BaseModel):
    """What happens to one site, and why. ``part`` is the ``[[replace]]`` that decided, counted from 1.

    ``parts`` is the number of matrices that a fused layer gets. In a file ``structure`` is called ``with``,
    as in a rule, and what is counted here is counted again when the plan is used. A planner says besides what
    it expects: relative ``error`` of the site's output, harm to the model's outputs, predicted and measured
    with this site alone replaced, and milliseconds of the site's product.
    """

    model_config = ConfigDict(extra="forbid")

    path: str
    kind: str
    action: Literal["replace", "leave"]
    structure: Structure | None = Field(
        default=None, validation_alias=AliasChoices("structure", "with"), serialization_alias="with"
    )
    start: Start | None = None
    reason: str = ""
    part: int | None = None
    parts: int = 1
    in_features: int = 0
    out_features: int = 0
    parameters_before: int = 0
    parameters_after: int = 0
    multiplications_before: int = 0
    multiplications_after: int = 0
    error: float | None = None
    predicted_harm: float | None = None
    measured_harm: float | None = None
    latency_before: float | None = None
    latency_after: float | None = None

    @property
    def harm(self) -> float:
        """Of this decision alone: measured, or where it was not, predicted; 0 if it is not known."""
        known = self.measured_harm if self.measured_harm is not None else self.predicted_harm
        return max(known or 0.0, 0.0)


class Plan(BaseModel):
    """Decisions about all sites, in the order they were found; JSON both ways.

    ``unmatched`` are the rule's parts that applied to no site, ``skipped`` those that ``unless_found``
    ruled out and why; both count parts from 1. Of a plan made for a budget, ``harm`` is what was kept small
    (see ``calibrate.harm``), and the harms those of all decisions together.
    """

    model_config = ConfigDict(extra="forbid")

    rule: str
    budget: str | None = None
    harm: str | None = None
    predicted_harm: float | None = None
    measured_harm: float | None = None
    decisions: list[Decision]
    unmatched: list[int] = []
    skipped: dict[int, str] = {}

    @property
    def replacements(self) -> list[Decision]:
        """Decisions that replace something."""
        return [decision for decision in self.decisions if decision.action == "replace"]


def make_plan(sites: Sequence["Site"], rule: Rule) -> Plan:
    """Decide about every site; the first part of the rule that applies to a site decides about it.

    A part applies to sites of its kind that its targets name, that it does not ignore, and that meet its
    conditions. The site is left alone all the same if it cannot be replaced, if the structure does not
    fit its sizes, or if it would have more parameters than before (permutations excepted: those had none).
    """
    kinds = Counter(site.kind for site in sites)
    skipped = {
        number: f"skipped, because the model has {_count(kinds[part.unless_found], part.unless_found)}"
        for number, part in enumerate(rule.replace, 1)
        if part.unless_found and kinds[part.unless_found]
    }
    parts = {number: part for number, part in enumerate(rule.replace, 1) if number not in skipped}
    decisions = [_decide(site, parts) for site in sites]
    applied = {decision.part for decision in decisions}
    unmatched = [number for number in parts if number not in applied]
    return Plan(rule=rule.name, decisions=decisions, unmatched=unmatched, skipped=skipped)


def require_matches(plan: Plan, sites: Sequence["Site"]) -> None:
    """Return if the plan replaces something.

    Raises:
        MatchError: it replaces nothing. The message tells what sites there are, why each was left, and
            which built-in rules would replace some of them.
    """
    if plan.replacements:
        return
    if not sites:
        raise MatchError(
            f'rule "{plan.rule}" matched nothing: the model has no linear layer, pointwise convolution or '
            f"channel shuffle at all"
        )
    kinds = Counter(site.kind for site in sites)
    found = ", ".join(_count(number, kind) for kind, number in kinds.items())
    lines = [f'rule "{plan.rule}" matched nothing it could replace; the model has {found}']
    reasons = Counter((decision.kind, decision.reason) for decision in plan.decisions)
    for (kind, reason), number in reasons.most_common(6):
        lines.append(f"  {_count(number, kind)} left: {reason}")
    if len(reasons) > 6:
        lines.append(f"  and {len(reasons) - 6} more reasons")
    would = {name: len(make_plan(sites, load_rule(name)).replacements) for name in builtin_rules()}
    helpful = [f'"{name}" ({_count(number)})' for name, number in would.items() if number]
    lines.append(
        f"built-in rules that would replace something: {', '.join(helpful)}"
        if helpful
        else "no built-in rule would replace anything in this model either"
    )
    raise MatchError("\n".join(lines))


def describe_parts(plan: Plan, rule: Rule | None) -> list[str]:
    """One line for each part of the rule: what it was for, and what came of it."""
    lines = []
    for number, part in enumerate(rule.replace if rule else (), 1):
        sites = sum(decision.part == number for decision in plan.replacements)
        what = f"part {number}, {part.find} → {part.structure.structure}, start {part.start}: "
        if number in plan.skipped:
            lines.append(what + plan.skipped[number])
        else:
            lines.append(
                what + (f"replaced {sites} site{'s' * (sites != 1)}" if sites else "found nothing to replace")
            )
    return lines


def _decide(site: "Site", parts: dict[int, Replacement]) -> Decision:
    reason = "no part of the rule is about this kind of site"
    for number, part in parts.items():
        if part.find != site.kind:
            continue
        obstacle = _obstacle(site, part)
        if obstacle is None:
            return _replace(site, number, part)
        reason = f"part {number}: {obstacle}"
    return _leave(site, site.reason or reason)


def _obstacle(site: "Site", part: Replacement) -> str | None:
    """Why the part does not apply to a site of its kind, or None if it does."""
    if part.targets and matching(part.targets, _names(site)) is None:
        return "not among its targets"
    ignored = matching(part.ignore, _names(site))
    if ignored is not None:
        return f'ignored by "{ignored}"'
    for field, condition in part.where:
        if condition is None:
            continue
        value = getattr(site, field)
        if field == "vectors" and value == 0:
            return f"its condition vectors {condition} cannot be checked without example inputs"
        if isinstance(condition, bool):
            if value != condition:
                return (
                    "a forward reads its weight, which would be multiplied out at every call"
                    if value
                    else "no forward reads its weight"
                )
        elif not holds(condition, value):
            return f"{field} = {value} is not {condition}"
    return None


def _replace(site: "Site", number: int, part: Replacement) -> Decision:
    if site.reason is not None:
        return _leave(site, site.reason, number)
    try:
        parts = site.parts if part.split else 1
        after, multiplications = structure_cost(site, part.structure, parts)
    except StructureError as error:
        return _leave(site, f"structure: {error}", number)
    if after > site.parameters and site.weight_parameters:
        return _leave(site, f"would grow from {site.parameters} to {after} parameters", number)
    target = matching(part.targets, _names(site))
    return Decision(
        path=site.path,
        kind=site.kind,
        action="replace",
        reason=f"part {number}" + (f', target "{target}"' if target else ""),
        part=number,
        structure=part.structure,
        start=part.start,
        parts=parts,
        parameters_before=site.parameters,
        parameters_after=after,
        multiplications_before=site.multiplications,
        multiplications_after=multiplications,
        in_features=site.in_features,
        out_features=site.out_features,
    )


def structure_cost(site: "Site", structure: Structure, parts: int = 1) -> tuple[int, int]:
    """Parameters of the site, bias included, and its multiplications per example, with a structure in place.

    Raises:
        StructureError: the structure cannot have the site's sizes.
    """
    numel = _numel(site, structure, parts)
    multiplications = site.vectors * numel
    if site.read:  # multiplied out at every call: the structure times a basis of its smaller side
        multiplications = site.multiplications + min(site.in_features, site.out_features) * numel
    return numel + site.parameters - site.weight_parameters, multiplications


def _leave(site: "Site", reason: str, number: int | None = None) -> Decision:
    return Decision(
        path=site.path,
        kind=site.kind,
        action="leave",
        reason=reason,
        part=number,
        in_features=site.in_features,
        out_features=site.out_features,
        parameters_before=site.parameters,
        parameters_after=site.parameters,
        multiplications_before=site.multiplications,
        multiplications_after=site.multiplications,
    )


def _numel(site: "Site", structure: Structure, parts: int) -> int:
    """Parameters of the structure on all groups of the site, which are also multiplications per vector."""
    groups = site.groups if site.kind == "pointwise_conv" else 1
    if groups > 1 and isinstance(structure, GroupedKaleidoscope):
        raise StructureError(
            f"the convolution has {groups} groups already, and a grouped structure needs one without"
        )
    if isinstance(structure, Butterfly):
        from ksurgeon.kmatrix.transform import count_parameters

        return count_parameters(site.facts, structure)
    sizes = site.in_features // groups, site.out_features // groups // parts
    return groups * parts * structure.parameters(*sizes)


def _names(site: "Site") -> tuple[str, ...]:
    return (site.path, site.owner, site.class_name, *site.aliases)


def _count(number: int, kind: str = "") -> str:
    return f"{number} {kind} site{'' if number == 1 else 's'}".replace("  ", " ")
