"""What an operation hands back: the converted model, and what was done to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from ksurgeon.find import Site
from ksurgeon.find.inputs import ExampleInputs
from ksurgeon.late import late
from ksurgeon.rules.plan import Plan
from ksurgeon.surgery.operate import Swap, swap_all, undo_all
from ksurgeon.surgery.record import Record

__all__ = ["Conversion", "Result"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one site.

    Attributes:
        path: where the replacement stands now.
        site: the site as it was found.
        structure: description of the structure.
        start: how the replacement got its values.
        weight_error: relative Frobenius error of the weight; None where the weight was not kept.
        output_error: relative error of the layer's output on the example inputs; None where not measured.
        seconds: time that building and fitting it took.
    """

    path: str
    site: Site
    structure: str
    start: str
    parameters_before: int
    parameters_after: int
    weight_error: float | None = None
    output_error: float | None = None
    seconds: float = 0.0


@dataclass(repr=False)
class Conversion:
    """A converted model and what was done to it; printed, a table of a screenful, and so in notebooks.

    ``output_change`` is the relative change of its outputs on the ``example_inputs``; None without any.
    """

    model: nn.Module
    plan: Plan
    sites: list[Site]
    results: list[Result]
    record: Record
    output_change: float | None
    swaps: list[Swap]
    example_inputs: ExampleInputs | None = None

    def __repr__(self) -> str:
        change = "not measured" if self.output_change is None else f"{self.output_change:.3g}"
        return (
            f"Conversion({type(self.model).__name__}, rule={self.plan.rule!r}, {len(self.results)} of "
            f"{len(self.plan.decisions)} sites replaced, output change {change})"
        )

    def __str__(self) -> str:
        text: str = late("as_text")(self)
        return text

    def _repr_html_(self) -> str:
        page: str = late("as_html")(self)
        return page

    @contextmanager
    def undone(self) -> Iterator[nn.Module]:
        """Inside, the original modules are back in place."""
        undo_all(self.swaps)
        try:
            yield self.model
        finally:
            swap_all(self.swaps)
