"""What a rule file may say, checked with pydantic."""

import operator
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ksurgeon.kmatrix.structures import Butterfly, Dense, Kaleidoscope, Structure, Sum

__all__ = ["Kind", "Replacement", "Rule", "Start", "Where", "holds", "matching"]

Kind = Literal["linear", "pointwise_conv", "channel_shuffle", "permutation", "transform", "filterbank"]
Start = Literal["exact", "fit", "random", "orthogonal", "identity"]

_OPERATORS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_KNOWN = ("channel_shuffle", "permutation", "transform", "filterbank")  # maps whose matrix is known
_BUTTERFLIES = ("transform", "filterbank")
_CONDITION = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*(\d+)\s*")


def _condition(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"== {value}"
    found = _CONDITION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('expected an integer, or a comparison with one such as ">= 64", "!= 3" or "< 4096"')
    return f"{found[1]} {found[2]}"


def _target(value: str) -> str:
    if value.startswith("re:"):
        try:
            re.compile(value[3:])
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from error
    return value


Condition = Annotated[str, BeforeValidator(_condition)]
Target = Annotated[str, Field(min_length=1), AfterValidator(_target)]


def _default_start(data: dict[str, object]) -> Start:
    return "exact" if data.get("find") in _KNOWN else "fit"


def holds(condition: str, value: int) -> bool:
    """Whether ``value`` meets a condition such as ``">= 64"``."""
    comparison, limit = condition.split()
    return bool(_OPERATORS[comparison](value, int(limit)))


def matching(targets: tuple[str, ...], names: tuple[str, ...]) -> str | None:
    """First of ``targets`` that one of ``names`` equals, or matches in full if it starts with ``re:``."""
    for target in targets:
        if target.startswith("re:"):
            if any(re.fullmatch(target[3:], name) for name in names):
                return target
        elif target in names:
            return target
    return None


class _Base(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, serialize_by_alias=True)


class Where(_Base):
    """Conditions on a site, all of which must hold: an integer, or a comparison with one.

    ``read`` is whether a forward reads the weight instead of calling the layer; see ``Site``.
    """

    in_features: Condition | None = None
    out_features: Condition | None = None
    groups: Condition | None = None
    parameters: Condition | None = None
    vectors: Condition | None = None
    read: bool | None = None


class Replacement(_Base):
    """One ``[[replace]]`` part: which sites, and what takes their place.

    A target is an exact module path, ``re:`` and a regular expression that matches the whole path, or a
    class name. No target at all means every site of the kind. With ``split``, a fused query, key and value
    gets one matrix each instead of one for all. In Python, ``structure`` is what a rule file calls ``with``.
    """

    find: Kind
    targets: tuple[Target, ...] = ()
    ignore: tuple[Target, ...] = ()
    where: Where = Where()
    unless_found: Kind | None = None
    split: bool = False
    structure: Structure = Field(alias="with")
    start: Start = Field(default_factory=_default_start)

    @model_validator(mode="after")
    def _exact_needs_a_known_map(self) -> "Replacement":
        if isinstance(self.structure, Sum) and self.find in _KNOWN:
            raise ValueError(
                f'structure = "{self.structure.structure}" is for trained weights '
                f'(find = "linear", "pointwise_conv"), not for "{self.find}"'
            )
        if self.start == "exact" and not isinstance(self.structure, Dense):
            if self.find not in _KNOWN:
                allowed = ", ".join(f'"{kind}"' for kind in _KNOWN)
                raise ValueError(
                    f'start = "exact" needs a map that a K-matrix holds exactly (find = {allowed}), '
                    f'not "{self.find}", whose weight is dense; allowed: '
                    f'"fit", "random", "orthogonal", "identity", or structure = "dense"'
                )
            if not isinstance(self.structure, Kaleidoscope) and self.find not in _BUTTERFLIES:
                raise ValueError(
                    f'start = "exact" is known for structure = "kaleidoscope", '
                    f'not for "{self.structure.structure}"'
                )
        if isinstance(self.structure, Butterfly) != (self.find in _BUTTERFLIES):
            allowed = ", ".join(f'"{kind}"' for kind in _BUTTERFLIES)
            raise ValueError(
                f'structure = "butterfly" goes with find = {allowed}, and they with nothing else; '
                f'got "{self.structure.structure}" for "{self.find}"'
            )
        if self.find in _BUTTERFLIES and self.start not in ("exact", "random"):
            raise ValueError(f'start for find = "{self.find}" is "exact" or "random", got "{self.start}"')
        return self


class Rule(_Base):
    """A rule: parts in order, of which the first that matches a site decides about it."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: Annotated[str, Field(min_length=1)]
    summary: str = ""
    replace: Annotated[tuple[Replacement, ...], Field(min_length=1)]
