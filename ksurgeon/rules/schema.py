"""What a rule file may say, checked with pydantic."""

import operator
import re
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ksurgeon.kmatrix.structures import Structure
from ksurgeon.rules.targets import compile_target
from ksurgeon.site_kinds import site_kind

if TYPE_CHECKING:
    from ksurgeon.find.site import Site

__all__ = [
    "Grid",
    "Insertion",
    "KindName",
    "Part",
    "Replacement",
    "Rule",
    "SiteStart",
    "Start",
    "Where",
    "holds",
    "matching",
]

Start = Literal["exact", "fit", "random", "orthogonal", "identity"]
SiteStart = Literal[Start, "geometry"]

_OPERATORS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*(\d{1,18})\s*", re.ASCII)


def _condition(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        value = f"== {value}"
    found = _CONDITION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('expected an integer, or a comparison with one such as ">= 64", "!= 3" or "< 4096"')
    return f"{found[1]} {found[2]}"


def _target(value: str) -> str:
    if value.startswith("re:"):
        compile_target(value[3:])
    return value


def _found(name: str) -> str:
    if site_kind(name).inserts:
        raise ValueError(
            f'at "{name}" nothing stands that could be replaced; give the rule an [[insert]] part'
        )
    return name


Condition = Annotated[str, BeforeValidator(_condition)]
Target = Annotated[str, Field(min_length=1), AfterValidator(_target)]
KindName = Annotated[str, AfterValidator(lambda name: site_kind(name).name)]
_Found = Annotated[str, AfterValidator(_found)]
Grid = Annotated[tuple[Annotated[int, Field(ge=3)], ...], Field(max_length=2)]


def _default_start(data: dict[str, object]) -> Start:
    return cast(Start, site_kind(str(data["find"])).starts[0]) if "find" in data else "fit"


def holds(condition: str, value: int) -> bool:
    """Whether ``value`` meets a condition such as ``">= 64"``."""
    comparison, limit = condition.split()
    return bool(_OPERATORS[comparison](value, int(limit)))


def matching(targets: tuple[str, ...], names: tuple[str, ...]) -> str | None:
    """First of ``targets`` that one of ``names`` equals, or matches in full if it starts with ``re:``."""
    for target in targets:
        if target.startswith("re:"):
            if any(map(compile_target(target[3:]), names)):
                return target
        elif target in names:
            return target
    return None


class _Base(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, serialize_by_alias=True)


class Where(_Base):
    """Conditions on a site, all of which must hold: an integer, or a comparison with one.

    ``read`` is whether a forward reads the weight instead of calling the layer, ``head`` whether the site
    belongs to the output head; see ``Site``.
    """

    in_features: Condition | None = None
    out_features: Condition | None = None
    groups: Condition | None = None
    parameters: Condition | None = None
    vectors: Condition | None = None
    read: bool | None = None
    head: bool | None = None


class Replacement(_Base):
    """One ``[[replace]]`` part: which sites, and what takes their place.

    A target is an exact module path, ``re:`` and a regular expression that matches the whole path, or a
    class name. No target at all means every site of the kind. With ``split``, a fused query, key and value
    gets one matrix each instead of one for all. With ``untie``, also a layer whose weight is tied to another
    module's is replaced, by a matrix of its own: an output head, of which the embedding keeps the weight.
    In Python, ``structure`` is what a rule file calls ``with``.
    """

    find: _Found
    targets: tuple[Target, ...] = ()
    ignore: tuple[Target, ...] = ()
    where: Where = Where()
    unless_found: _Found | None = None
    split: bool = False
    untie: bool = False
    structure: Structure = Field(alias="with")
    start: Start = Field(default_factory=_default_start)

    @model_validator(mode="after")
    def _can_start_so(self) -> "Replacement":
        parametrization = getattr(self.structure, "parametrization", "free")
        if parametrization == "orthogonal" and self.start in ("exact", "fit"):
            raise ValueError(
                f'start = "{self.start}" needs parametrization = "free"; with "orthogonal", start is '
                f'"identity", "orthogonal" or "random"'
            )
        if problem := site_kind(self.find).problem(self.structure, self.start):
            raise ValueError(problem)
        return self


class Insertion(_Base):
    """One ``[[insert]]`` part: a map before or after modules, where there was none.

    Targets, ``ignore`` and ``where`` are those of a replacement. What a module takes first, or what it gives,
    is mapped along dimension ``dim``, where -1 is the last of whatever tensor comes. With
    ``start = "identity"`` the outputs stay exactly as they are. With ``start = "geometry"`` the map is the
    permutation that arranges the entries on ``grid``, or without one on a line, as data tell (see
    ``find_arrangement``).
    """

    before: tuple[Target, ...] = ()
    after: tuple[Target, ...] = ()
    ignore: tuple[Target, ...] = ()
    where: Where = Where()
    dim: int
    structure: Structure = Field(alias="with")
    start: Literal["identity", "orthogonal", "random", "geometry"] = "identity"
    grid: Grid = ()

    @model_validator(mode="after")
    def _is_one_square_chain(self) -> "Insertion":
        if bool(self.before) == bool(self.after):
            raise ValueError("give one of before and after: a list of paths, re:expressions or class names")
        if problem := site_kind(self.find).problem(self.structure, self.start, grid=self.grid):
            raise ValueError(problem)
        return self

    find: ClassVar = "insertion"
    split: ClassVar = False
    untie: ClassVar = False
    unless_found: ClassVar = None

    @property
    def place(self) -> Literal["before", "after"]:
        """Where the map stands, from the modules that are named."""
        return "before" if self.before else "after"

    @property
    def targets(self) -> tuple[str, ...]:
        """The modules that are named."""
        return self.before or self.after

    def has_dimension(self, site: "Site") -> bool:
        """Whether the tensor at the site has the dimension; it is not known everywhere."""
        return site.dim is None or -site.ndim <= self.dim < site.ndim

    def is_about(self, site: "Site") -> bool:
        """Whether the site is at the place and along the dimension; the last answers for a missing one."""
        if site.facts["place"] != self.place or site.dim is None:
            return bool(site.facts["place"] == self.place)
        return site.dim == (self.dim % site.ndim if self.has_dimension(site) else site.ndim - 1)


Part = Replacement | Insertion


class Rule(_Base):
    """A rule: parts in order, of which the first that matches a site decides about it.

    Parts count from 1, the insertions after the replacements.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: Annotated[str, Field(min_length=1)]
    summary: str = ""
    replace: tuple[Replacement, ...] = ()
    insert: tuple[Insertion, ...] = ()

    @model_validator(mode="after")
    def _has_parts(self) -> "Rule":
        if not self.parts:
            raise ValueError("a rule needs at least one [[replace]] or [[insert]]")
        return self

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts in order."""
        return (*self.replace, *self.insert)
