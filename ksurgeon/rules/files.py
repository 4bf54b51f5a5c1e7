"""Plans as TOML files, for people to read and to edit."""

from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ksurgeon.errors import FolderError, PlanError, StructureError
from ksurgeon.files import parse_toml, read_regular
from ksurgeon.kmatrix.structures import Structure
from ksurgeon.rules.explain import explain
from ksurgeon.rules.plan import Decision, Plan, structure_cost
from ksurgeon.site_kinds import site_kind

if TYPE_CHECKING:
    from ksurgeon.find.site import Site

__all__ = ["checked_plan", "read_plan", "write_plan"]

_SCHEMA = 1
_HEAD = """\
A plan of ksurgeon. Carry it out with: ksurgeon convert MODEL --plan THIS_FILE --data DATA
Edit it as you like: set action = "leave", or write another structure after with =, as in a rule file
(structure = "low_rank", "monarch", "kaleidoscope", …). A site that has no entry here is left as it is.
What is counted or measured below is for you to read; it is counted again when the plan is used."""


def write_plan(plan: Plan, file: str | Path) -> None:
    """Write a plan; the file is there in whole or, where this fails, as it was.

    Raises:
        FolderError: it cannot be written.
    """
    import tomlkit

    document = tomlkit.document()
    for line in _HEAD.splitlines():
        document.add(tomlkit.comment(line))
    document.add(tomlkit.nl())
    plain = plan.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    del plain["decisions"]
    document.add("schema", tomlkit.item(_SCHEMA))
    for name, value in plain.items():
        document.add(name, tomlkit.item(_short(value)))
    tables = tomlkit.aot()
    for decision in plan.decisions:
        table = tomlkit.table()
        facts = decision.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        for name, value in facts.items():
            table.add(name, _short(value) if name != "with" else _inline(decision.structure, value))
        tables.append(table)
    document.add("decisions", tables)
    target = Path(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".plan.{token_hex(8)}")  # readable to whom any new file is
        try:
            with part.open("x", encoding="utf-8") as stream:
                stream.write(tomlkit.dumps(document))
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise FolderError(f"{target} cannot be written: {error.strerror}") from error


def read_plan(file: str | Path) -> Plan:
    """Read a plan that ``write_plan`` wrote and people may have edited.

    Raises:
        PlanError: it cannot be read, or says something that it may not; the keys are named.
    """
    path = Path(file)
    try:
        data = parse_toml(read_regular(path))
    except FileNotFoundError as error:
        raise PlanError(f"{path}: no such plan; `ksurgeon plan … -o {path.name}` makes one") from error
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"{path}: not a text file in UTF-8 (byte {error.start})") from error
    except ValueError as error:
        raise PlanError(f"{path}: not valid TOML: {error}") from error
    schema = data.pop("schema", None)
    if schema != _SCHEMA:
        raise PlanError(f"{path}: schema is {schema!r}; this ksurgeon reads schema = {_SCHEMA}")
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        lines = explain(error, data, Plan).splitlines()
        raise PlanError("\n".join(f"{path}: {line}" for line in lines)) from error


def checked_plan(plan: Plan, sites: "list[Site]") -> Plan:
    """The plan with its counts made anew from the sites that it is about.

    Raises:
        PlanError: a site that it replaces is missing, has other sizes, cannot be replaced, or cannot have the
            structure; all such sites are named.
    """
    known = {(site.path, site.kind): site for site in sites}
    problems: list[str] = []
    decisions = []
    for decision in plan.decisions:
        site = known.get((decision.path, decision.kind))
        problem = None
        if decision.action == "replace":
            problem = _problem(decision, site)
        if problem:
            problems.append(f"{decision.path}: {problem}")
        elif site is not None:
            decisions.append(_counted(decision, site))
    if problems:
        more = f"\nand {len(problems) - 6} more" if len(problems) > 6 else ""
        raise PlanError(
            "the plan does not fit the model, which changed or is another one than it was made for:\n"
            + "\n".join(problems[:6])
            + more
            + '\nmake the plan anew, or set action = "leave" for these sites'
        )
    return plan.model_copy(update={"decisions": decisions})


def _problem(decision: Decision, site: "Site | None") -> str | None:
    if site is None:
        return f"the model has no such {decision.kind} site"
    sizes = decision.in_features or site.in_features, decision.out_features or site.out_features
    if sizes != (site.in_features, site.out_features):
        return (
            f"the plan is for {sizes[0]} → {sizes[1]}, the site is {site.in_features} → {site.out_features}"
        )
    if site.reason is not None and not site.tied:
        return f"it cannot be replaced: {site.reason}"
    if decision.dim is not None and not site.is_along(decision.dim):
        return f"dim = {decision.dim} is not the dimension of the site; its dim is {site.dim}"
    if decision.structure is None:
        return "no structure is given (with = { structure = … })"
    try:
        kind, start = site_kind(site.kind), decision.start
        problem = kind.problem(decision.structure, start, site.in_features, decision.grid)
        if problem is None:
            structure_cost(site, decision.structure, decision.parts)
        return problem
    except StructureError as error:
        return str(error)


def _counted(decision: Decision, site: "Site") -> Decision:
    counts: dict[str, Any] = {}
    if decision.action == "replace":
        assert decision.structure is not None
        after = structure_cost(site, decision.structure, decision.parts)
        counts = {"parameters_after": after[0], "multiplications_after": after[1]}
        counts["start"] = decision.start or site_kind(site.kind).starts[0]
    fresh = Decision.about(site, action=decision.action, **counts)
    return decision.model_copy(update={name: getattr(fresh, name) for name in fresh.model_fields_set})


def _inline(structure: Structure | None, facts: dict[str, Any]) -> Any:
    """``{ structure = …, … }`` on one line, without what is as it would be anyway."""
    import tomlkit

    assert structure is not None
    table = tomlkit.inline_table()
    table.update({"structure": structure.structure} | facts)
    return table


def _short(value: Any) -> Any:
    """Floats with six digits: nothing is computed from them."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
