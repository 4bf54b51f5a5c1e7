"""A plan: for every site of a model one decision, with its reason and what it costs or saves."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from ksurgeon.errors import MatchError, StructureError
from ksurgeon.kmatrix.structures import Structure
from ksurgeon.rules.load import builtin_rules, load_rule
from ksurgeon.rules.schema import Grid, Insertion, Part, Rule, SiteStart, holds, matching
from ksurgeon.site_kinds import site_kind, site_kinds

if TYPE_CHECKING:
    from ksurgeon.find.site import Site  # imports torch, which listing rules does not need

__all__ = [
    "Decision",
    "Plan",
    "describe_parts",
    "leave",
    "make_plan",
    "require_matches",
    "structure_cost",
    "unmatched_messages",
]

_FLAGS = {
    ("read", True): "a forward reads its weight, which would be multiplied out at every call",
    ("read", False): "no forward reads its weight",
    ("head", True): "it belongs to the output head",
    ("head", False): "it does not belong to the output head",
}


class Decision(BaseModel):
    """What happens to one site, and why. ``part`` is the part of the rule that decided, counted from 1.

    To replace an insertion is to insert; ``grid`` is that of the start "geometry". ``parts`` is the number of
    matrices that a fused layer gets. In a file ``structure`` is called ``with``, as in a rule, and what is
    counted here is counted again when the plan is used. ``dim`` is that of an insertion as its rule says it:
    -1 is the last of whatever tensor it gets. A planner says besides what it expects: relative ``error`` of
    the site's output, harm to the model's outputs, predicted and measured with this site alone replaced, and
    milliseconds of the site's product.
    """

    model_config = ConfigDict(extra="forbid")

    path: str
    kind: str
    action: Literal["replace", "leave"]
    structure: Structure | None = Field(
        default=None, validation_alias=AliasChoices("structure", "with"), serialization_alias="with"
    )
    start: SiteStart | None = None
    grid: Grid = ()
    reason: str = ""
    part: int | None = None
    parts: int = 1
    dim: int | None = None
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

    @classmethod
    def about(cls, site: "Site", **decided: Any) -> Self:
        """A decision about a site: to leave it, unless ``decided`` says what becomes of it, and its cost."""
        parameters, multiplications = site.parameters, site.multiplications
        facts = {"path": site.path, "kind": site.kind, "action": "leave"}
        sizes = {"in_features": site.in_features, "out_features": site.out_features}
        before = {"parameters_before": parameters, "multiplications_before": multiplications}
        after = {"parameters_after": parameters, "multiplications_after": multiplications}
        return cls.model_validate({**facts, **sizes, **before, **after, **decided})

    @property
    def harm(self) -> float:
        """Of this decision alone: measured, or where it was not, predicted; 0 if it is not known."""
        known = self.measured_harm if self.measured_harm is not None else self.predicted_harm
        return max(known or 0.0, 0.0)


class Plan(BaseModel):
    """Decisions about all sites, in the order they were found; JSON both ways.

    ``unmatched`` are the rule's parts that applied to no site, ``skipped`` those that ``unless_found``
    ruled out and why, and ``unmatched_names`` has a sentence for each target, and each path or class to
    ignore, that matches nothing; all count parts from 1. Of a plan made for a budget, ``harm`` is what was
    kept small (see ``calibrate.harm``), ``threads``, ``precision`` and ``runtime`` are those that times were
    measured with, and the harms those of all decisions together.
    """

    model_config = ConfigDict(extra="forbid")

    rule: str
    budget: str | None = None
    harm: str | None = None
    threads: int | None = None
    precision: Literal["bfloat16", "int8"] | None = None
    runtime: Literal["eager", "compile", "onnx"] = "eager"
    predicted_harm: float | None = None
    measured_harm: float | None = None
    decisions: list[Decision]
    unmatched: list[int] = []
    skipped: dict[int, str] = {}
    unmatched_names: dict[int, list[str]] = {}

    def __repr_args__(self) -> Iterator[tuple[str | None, object]]:
        yield "rule", self.rule
        if self.budget is not None:
            yield "budget", self.budget
        replaced = len(self.replacements)
        yield "replaced", replaced
        yield "left", len(self.decisions) - replaced

    @property
    def replacements(self) -> list[Decision]:
        """Decisions that replace something."""
        return [decision for decision in self.decisions if decision.action == "replace"]


def make_plan(sites: Sequence["Site"], rule: Rule) -> Plan:
    """Decide about every site; the first part of the rule that applies to a site decides about it.

    A part applies to sites of its kind that its targets name, that it does not ignore, and that meet its
    conditions. The site is left alone all the same if it cannot be replaced, if the structure does not
    fit its sizes, or if it would have more parameters than before (permutations excepted: those had none).
    Of the many places where a map could be inserted, only those that a part names get a decision.
    """
    kinds = Counter(site.kind for site in sites)
    skipped = {
        number: f"skipped, because the model has {_count(kinds[part.unless_found], part.unless_found)}"
        for number, part in enumerate(rule.parts, 1)
        if part.unless_found and kinds[part.unless_found]
    }
    parts = {number: part for number, part in enumerate(rule.parts, 1) if number not in skipped}
    named = [s for s in sites if not site_kind(s.kind).inserts or any(map(_names(s), rule.insert))]
    decisions = [_decide(site, parts) for site in named]
    applied = {decision.part for decision in decisions}
    unmatched = [number for number in parts if number not in applied]
    unmatched_names = {}
    for number, part in parts.items():
        among = [site for site in sites if site_kind(site.kind).inserts == isinstance(part, Insertion)]
        if messages := unmatched_messages(part.targets, part.ignore, among, part.find):
            unmatched_names[number] = messages
    return Plan(
        rule=rule.name,
        decisions=decisions,
        unmatched=unmatched,
        skipped=skipped,
        unmatched_names=unmatched_names,
    )


def _names(site: "Site") -> Callable[[Insertion], bool]:
    return lambda part: part.is_about(site) and matching(part.targets, site.names) is not None


def unmatched_messages(
    targets: Sequence[str], ignore: Sequence[str], sites: Sequence["Site"], kind: str | None = None
) -> list[str]:
    """What to say of targets, and of paths and classes to ignore, that no site of the kind has."""
    eligible = [site for site in sites if kind is None or site.kind == kind]
    messages = []
    exact = [name for name in ignore if not name.startswith("re:")]  # expressions serve many models
    for word, names, among in (("target", targets, eligible), ("ignore", exact, sites)):
        for name in names:
            if not any(matching((name,), site.names) for site in among):
                messages.append(f'{word} "{name}" matches nothing{_hint(name, sites, among)}')
    return messages


def _hint(name: str, sites: Sequence["Site"], eligible: Sequence["Site"]) -> str:
    others = sorted({site.kind for site in sites if matching((name,), site.names)})
    if others:
        return f" of this kind, only {', '.join(others)}"
    below = [site for site in eligible if f".{site.path}.".find(f".{name}.") >= 0]
    if below:
        return (
            f'; a target is a whole path or a class: "re:(.*\\.)?{re.escape(name)}(\\..*)?" matches '
            + _count(len(below))
        )
    near = get_close_matches(name, [n for site in eligible for n in site.names], n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


def require_matches(plan: Plan, sites: Sequence["Site"]) -> None:
    """Return if the plan replaces something.

    Raises:
        MatchError: it replaces nothing. The message tells what sites there are, why each was left, and
            which built-in rules would replace some of them.
    """
    if plan.replacements:
        return
    if not (sites or plan.decisions):
        titles = ", ".join(kind.title for kind in site_kinds() if not kind.inserts)
        raise MatchError(f'rule "{plan.rule}" matched nothing: the model has no {titles} at all')
    kinds = Counter(site.kind for site in sites)
    found = ", ".join(_count(number, kind) for kind, number in kinds.items())
    lines = [f'rule "{plan.rule}" matched nothing it could replace; the model has {found}']
    reasons = Counter((decision.kind, decision.reason) for decision in plan.decisions)
    for (kind, reason), number in reasons.most_common(6):
        lines.append(f"  {_count(number, kind)} left: {reason}")
    if len(reasons) > 6:
        lines.append(f"  and {len(reasons) - 6} more reasons")
    lines += [f"  part {number}: {m}" for number, found in plan.unmatched_names.items() for m in found]
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
    for number, part in enumerate(rule.parts if rule else (), 1):
        sites = sum(decision.part == number for decision in plan.replacements)
        kind = f"insertion {part.place}, dim {part.dim}" if isinstance(part, Insertion) else part.find
        what = f"part {number}, {kind} → {part.structure.structure}, start {part.start}: "
        if number in plan.skipped:
            lines.append(what + plan.skipped[number])
        else:
            verb, past = site_kind(part.find).verbs
            lines.append(
                what + (f"{past} {sites} site{'s' * (sites != 1)}" if sites else f"found nothing to {verb}")
            )
            lines += [f"part {number}: {message}" for message in plan.unmatched_names.get(number, ())]
    return lines


def _decide(site: "Site", parts: dict[int, Part]) -> Decision:
    reason = "no part of the rule is about this kind of site"
    for number, part in parts.items():
        if part.find != site.kind or (isinstance(part, Insertion) and not part.is_about(site)):
            continue
        obstacle = _obstacle(site, part)
        if obstacle is None:
            return _replace(site, number, part)
        reason = f"part {number}: {obstacle}"
    return leave(site, site.reason or reason)


def _obstacle(site: "Site", part: Part) -> str | None:
    """Why the part does not apply to a site of its kind, or None if it does."""
    if part.targets and matching(part.targets, site.names) is None:
        return "not among its targets"
    ignored = matching(part.ignore, site.names)
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
                return _FLAGS[field, value]
        elif not holds(condition, value):
            return f"{field} = {value} is not {condition}"
    if isinstance(part, Insertion) and not part.has_dimension(site):
        return f"tensors of {site.ndim} dimensions have no dimension {part.dim}"
    return None


def _replace(site: "Site", number: int, part: Part) -> Decision:
    if site.reason is not None and not (site.tied and part.untie):
        return leave(site, site.reason, number)
    try:
        parts = site.parts if part.split else 1
        after, multiplications = structure_cost(site, part.structure, parts)
        if part.start not in ("exact", "fit", "geometry"):
            sizes = site.in_features * parts, site.out_features
            part.structure.new_matrix(*sizes, groups=site.blocks * parts, start=part.start, device="meta")
        grid = part.grid if isinstance(part, Insertion) else ()
        if problem := site_kind(site.kind).problem(part.structure, part.start, site.in_features, grid):
            raise StructureError(problem)
    except StructureError as error:
        return leave(site, f"structure: {error}", number)
    if after > site.parameters and site.weight_parameters:
        return leave(site, f"would grow from {site.parameters} to {after} parameters", number)
    target = matching(part.targets, site.names)
    return Decision.about(
        site,
        action="replace",
        reason=f"part {number}" + (f', target "{target}"' if target else ""),
        part=number,
        structure=part.structure,
        start="exact" if isinstance(part, Insertion) and part.start == "identity" else part.start,
        grid=grid,
        parts=parts,
        dim=part.dim if isinstance(part, Insertion) else None,
        parameters_after=after,
        multiplications_after=multiplications,
    )


def structure_cost(site: "Site", structure: Structure, parts: int = 1) -> tuple[int, int]:
    """Parameters of the site, bias included, and its multiplications per example, with a structure in place.

    Raises:
        StructureError: the structure cannot have the site's sizes.
    """
    parameters, each = site_kind(site.kind).cost(site, structure, parts)
    multiplications = site.vectors * each
    if site.read:  # multiplied out at every call: the structure times a basis of its smaller side
        multiplications = site.multiplications + min(site.in_features, site.out_features) * each
    return parameters + site.parameters - site.weight_parameters, multiplications


def leave(site: "Site", reason: str, number: int | None = None) -> Decision:
    """The decision to leave a site as it is."""
    return Decision.about(site, reason=reason, part=number)


def _count(number: int, kind: str = "") -> str:
    return f"{number} {kind} site{'' if number == 1 else 's'}".replace("  ", " ")
