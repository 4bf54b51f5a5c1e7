"""What the user asks for: so many parameters, multiplications or milliseconds, or so much harm."""

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from ksurgeon.errors import PlanError

__all__ = ["Budget", "BudgetKind"]

BudgetKind = Literal["params", "flops", "latency", "error"]
_TEXT = re.compile(r"\s*([a-z]+)\s*=\s*([0-9.eE+-]+%?)\s*")


@dataclass(frozen=True)
class Budget:
    """A limit on one thing, everything else as little harmed or as small as possible.

    Attributes:
        kind: "params" or "flops", a share of those of the layers in play; "latency", a share of the whole
            model's time; "error", the harm to the outputs, with the fewest parameters that it allows.
        value: the share, or the harm.
    """

    kind: BudgetKind
    value: float

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"

    @classmethod
    def parse(cls, text: "str | Budget") -> "Budget":
        """Read a budget such as "params=0.5", "latency=70%" or "error=0.02".

        Raises:
            PlanError: it is none.
        """
        if isinstance(text, Budget):
            return text
        found = _TEXT.fullmatch(text)
        allowed = "expected params=0.5, flops=0.6, latency=0.7 or error=0.02"
        if found is None or found[1] not in get_args(BudgetKind):
            raise PlanError(f'invalid budget "{text}"; {allowed}')
        try:
            value = float(found[2].rstrip("%")) / (100 if found[2].endswith("%") else 1)
        except ValueError:
            raise PlanError(f'the budget "{text}" has no number; {allowed}') from None
        kind = cast(BudgetKind, found[1])
        if not value > 0 or value == float("inf") or (kind != "error" and value > 1):
            limits = "above 0" if kind == "error" else "above 0 and at most 1, a share of what there is"
            raise PlanError(f'the budget "{text}" must be {limits}')
        return cls(kind, value)
