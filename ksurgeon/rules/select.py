"""What ``convert`` takes in Python: structures for targets, and the targets that narrow any rule or plan."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ksurgeon.errors import MatchError, RuleError
from ksurgeon.kmatrix.structures import Structure
from ksurgeon.rules.files import checked_plan
from ksurgeon.rules.load import load_rule
from ksurgeon.rules.plan import Plan, leave, make_plan
from ksurgeon.rules.schema import Replacement, Rule, SiteStart, Where, matching
from ksurgeon.rules.targets import compile_target
from ksurgeon.site_kinds import SiteKind, site_kinds

if TYPE_CHECKING:
    from torch import nn

    from ksurgeon.find.site import Site

__all__ = ["Selection", "Target", "Targets", "What", "as_targets", "meets"]

Target = str | type["nn.Module"] | Callable[[str, "nn.Module"], bool]
Targets = Target | Sequence[Target]
What = str | Path | Rule | Plan | Structure | Mapping[Any, Structure]
"""A rule's name, file or object, a plan, a structure, or structures by their targets."""


class Selection:
    """What is to be done to a model, checked as far as it can be without the model.

    Args:
        what: see ``What``.
        targets: sites that are meant, all if left out.
        ignore: sites that are left as they are.
        start: how structures get their values; rules and plans say that themselves.

    Raises:
        RuleError: no such rule, or targets, a start or a structure that are none.
    """

    def __init__(
        self,
        what: What,
        targets: Targets | None = None,
        ignore: Targets | None = None,
        start: SiteStart | None = None,
    ) -> None:
        self.targets = None if targets is None else as_targets(targets)
        self.ignore = () if ignore is None else as_targets(ignore)
        self.start = start
        self.given: Rule | Plan | list[tuple[tuple[Target, ...] | None, Structure]]
        if isinstance(what, Structure):
            self.given = [(self.targets, what)]
        elif isinstance(what, Mapping):
            self.given = [(as_targets(key), structure) for key, structure in what.items()]
            for key, structure in what.items():
                if not isinstance(structure, Structure):
                    raise RuleError(
                        f"{key!r} needs a structure, such as ksurgeon.Monarch(4), got {structure!r}"
                    )
            if not what:
                raise RuleError("no structures are given; give at least one, such as {'mlp': Monarch(4)}")
        elif start is not None:
            raise RuleError(f"start={start!r} goes with structures; rules and plans say it for each part")
        elif isinstance(what, Plan):
            self.given = what
        elif isinstance(what, (str, Path, Rule)):
            self.given = load_rule(what)
        else:
            raise RuleError(
                "give a rule's name or file, a Rule, a Plan, a structure such as ksurgeon.Monarch(4), or a "
                f"mapping of targets to structures; got {what!r}"
            )

    @property
    def kinds(self) -> set[str]:
        """Names of the kinds of site that it may be about."""
        if isinstance(self.given, Plan):
            return {decision.kind for decision in self.given.replacements}
        if isinstance(self.given, Rule):
            asked = {kind for part in self.given.parts for kind in (part.find, part.unless_found)}
            return {kind for kind in asked if kind is not None}
        structures = [structure for _, structure in self.given]
        return {
            kind.name
            for kind in site_kinds()
            if (kind.is_default or kind.has_weight) and any(map(kind.takes, structures))
        }

    def decide(self, model: "nn.Module", sites: "list[Site]") -> tuple[Plan, Rule | None]:
        """The plan for the sites of a model, and the rule that it follows from, if it follows from one.

        Raises:
            MatchError: a target matches nothing.
            PlanError: the plan that was given is not for this model.
            RuleError: a start that the structure cannot have.
        """
        if isinstance(self.given, Plan):
            return self._narrowed(checked_plan(self.given, sites), model, sites), None
        rule = self.given if isinstance(self.given, Rule) else self._rule(self.given, model, sites)
        return self._narrowed(make_plan(sites, rule), model, sites), rule

    def _rule(
        self,
        pairs: "list[tuple[tuple[Target, ...] | None, Structure]]",
        model: "nn.Module",
        sites: "list[Site]",
    ) -> Rule:
        parts = []
        for targets, structure in pairs:
            kinds = _kinds_for(structure, targets, model, sites)
            eligible = [site for site in sites if site.kind in {kind.name for kind in kinds}]
            if targets is not None:
                _require_all(targets, model, eligible, sites)
            for kind in kinds:
                paths = [
                    site.path
                    for site in eligible
                    if site.kind == kind.name and site.path and targets and _first(targets, model, site)
                ]
                if paths or targets is None:
                    parts.append(self._part(kind, paths, structure))
        return Rule(
            name=", ".join(dict.fromkeys(part.structure.structure for part in parts)), replace=tuple(parts)
        )

    def _part(self, kind: SiteKind, paths: list[str], structure: Structure) -> Replacement:
        where = Where(head=False, read=False) if kind.has_weight and not paths else Where()
        given = {"find": kind.name, "targets": paths, "where": where, "structure": structure}
        try:
            return Replacement.model_validate(given if self.start is None else given | {"start": self.start})
        except ValidationError as error:
            message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise RuleError(f"{structure!r} with start={self.start!r}: {message}") from error

    def _narrowed(self, plan: Plan, model: "nn.Module", sites: "list[Site]") -> Plan:
        """The plan without the sites that are ignored, or not among the targets."""
        if self.targets is not None and not isinstance(self.given, list):
            _require_all(self.targets, model, sites, sites)
        for name in self.ignore:
            is_exact = isinstance(name, str) and not name.startswith("re:")
            if is_exact and not any(meets(name, model, site) for site in sites):
                message = f'ignore "{name}" matches nothing{_nearest(name, sites)}'
                warnings.warn(message, stacklevel=6)
        known = {(site.path, site.kind): site for site in sites}
        decisions = []
        for decision in plan.decisions:
            if decision.action == "replace":
                site = known[decision.path, decision.kind]
                ignored = _first(self.ignore, model, site)
                if self.targets is not None and not _first(self.targets, model, site):
                    decision = leave(site, "not among the targets", decision.part)
                elif ignored is not None:
                    decision = leave(site, f"ignored by {_show(ignored)}", decision.part)
            decisions.append(decision)
        return plan.model_copy(update={"decisions": decisions})


def _kinds_for(
    structure: Structure, targets: tuple[Target, ...] | None, model: "nn.Module", sites: "list[Site]"
) -> list[SiteKind]:
    """Kinds that a structure is for by itself; where the targets mean none of these, others with weights."""
    able = [kind for kind in site_kinds() if kind.takes(structure) and not kind.inserts]  # type: ignore[arg-type]
    default = [kind for kind in able if kind.is_default]
    others = [kind for kind in able if kind.has_weight and not kind.is_default]
    if targets is None or not others:
        return default

    def means(kinds: list[SiteKind]) -> bool:
        names = {kind.name for kind in kinds}
        return any(_first(targets, model, site) is not None for site in sites if site.kind in names)

    return others if not means(default) and means(others) else default


def as_targets(targets: Targets) -> tuple[Target, ...]:
    """One or several targets as a tuple.

    Raises:
        RuleError: something that is no target, or a malformed regular expression.
    """
    several = tuple(targets) if isinstance(targets, Sequence) and not isinstance(targets, str) else (targets,)
    for target in several:
        if not (isinstance(target, str) or callable(target)):
            raise RuleError(
                "a target is a path or a part of one, a glob, re: and a regular expression, a class, or a "
                f"function of path and module; got {target!r}"
            )
        if isinstance(target, str) and target.startswith("re:"):
            try:
                compile_target(target[3:])
            except ValueError as error:
                raise RuleError(f'target "{target}": {error}') from error
    return several


def meets(target: Target, model: "nn.Module", site: "Site") -> bool:
    """Whether a target that was given in Python means a site of the model.

    A string with ``re:`` matches as in a rule file, one with ``*``, ``?`` or ``[`` as a glob whose ``*`` does
    not stop at a dot, any other if it is the site's path, whole names in it ("attn" or "0.attn" in
    "layers.0.attn.query"), or the class of the site's module or of one around it. So does a class, with its
    subclasses. A function is asked with the path and the module that owns the site.
    """
    if isinstance(target, str):
        if target.startswith("re:"):
            return matching((target,), site.names) is not None
        if any(sign in target for sign in "*?["):
            return any(fnmatchcase(name, target) for name in site.names)
        if any(f".{target}." in f".{name.replace(':', '.')}." for name in (site.path, *site.aliases)):
            return True
        if target in (site.path, *site.aliases):
            return True
        return any(type(module).__name__ == target for module in _around(model, site))
    if isinstance(target, type):
        return any(isinstance(module, target) for module in _around(model, site))
    return bool(target(site.path, model.get_submodule(site.owner)))


def _around(model: "nn.Module", site: "Site") -> "list[nn.Module]":
    """The site's module and all that hold it, the model first."""
    modules = [model]
    for name in filter(None, site.owner.split(".")):
        modules.append(modules[-1].get_submodule(name))
    return modules


def _first(targets: tuple[Target, ...], model: "nn.Module", site: "Site") -> Target | None:
    return next((target for target in targets if meets(target, model, site)), None)


def _require_all(
    targets: tuple[Target, ...], model: "nn.Module", eligible: "list[Site]", sites: "list[Site]"
) -> None:
    for target in targets:
        if any(meets(target, model, site) for site in eligible):
            continue
        others = sorted({site.kind for site in sites if meets(target, model, site)})
        hint = f" that the structure is for, only {', '.join(others)}" if others else ""
        raise MatchError(f"target {_show(target)} matches no site{hint or _nearest(target, eligible)}")


def _nearest(target: Target, sites: "list[Site]") -> str:
    names = {name for site in sites for name in (*site.names, *site.path.split(".")) if name}
    near = get_close_matches(target, sorted(names), n=3) if isinstance(target, str) else []
    return (
        f"; did you mean {' or '.join(near)}?"
        if near
        else "; ksurgeon.find(model, inputs) lists what there is"
    )


def _show(target: Target) -> str:
    return f'"{target}"' if isinstance(target, str) else getattr(target, "__qualname__", repr(target))
