"""A conversion as a table of a screenful, in text and for notebooks."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from io import StringIO
from statistics import median

from rich.console import Console, Group, RenderableType
from rich.text import Text

from ksurgeon.report.terminal import new_table, show_error, totals_table
from ksurgeon.surgery.conversion import Conversion, Result

__all__ = ["as_html", "as_text"]

_WIDTH, _GROUPS, _REASONS, _LONGEST = 110, 12, 6, 60
_PAGE = '<pre style="line-height: 1.2; white-space: pre; overflow-x: auto">{code}</pre>'


def as_text(conversion: Conversion) -> str:
    """The table without colours, whatever the terminal."""
    console = Console(file=StringIO(), width=_WIDTH, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(_table(conversion), highlight=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def as_html(conversion: Conversion) -> str:
    """The table as an element that needs no style sheet."""
    console = Console(file=StringIO(), width=_WIDTH, record=True, force_jupyter=False)
    console.print(_table(conversion), highlight=False)
    return console.export_html(inline_styles=True, code_format=_PAGE)


def _table(conversion: Conversion) -> RenderableType:
    groups: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for result in conversion.results:
        groups[result.site.kind, result.structure, result.start].append(result)
    table = new_table("", "sites", "kind", "by", "start", "parameters", "→", "weight error", "output error")
    for column in table.columns[1:4]:
        column.justify = "left"
    for (kind, structure, start), results in list(groups.items())[:_GROUPS]:
        table.add_row(
            str(len(results)),
            kind,
            Text(_short(structure)),
            start,
            f"{sum(result.parameters_before for result in results):,}",
            f"{sum(result.parameters_after for result in results):,}",
            _median(result.weight_error for result in results),
            _median(result.output_error for result in results),
        )
    lines: list[RenderableType] = [Text(repr(conversion), style="bold"), table]
    if len(groups) > _GROUPS:
        lines.append(Text(f"… and {len(groups) - _GROUPS} more structures", style="dim"))
    left = Counter((d.kind, d.reason) for d in conversion.plan.decisions if d.action == "leave")
    for (kind, reason), number in left.most_common(_REASONS):
        lines.append(Text(f"{number} {kind} left: {_short(reason, _WIDTH - 40)}", style="dim"))
    if len(left) > _REASONS:
        lines.append(Text(f"… and {len(left) - _REASONS} more reasons", style="dim"))
    if conversion.record.outcome is not None:
        lines.append(totals_table(conversion.record.outcome))
    return Group(*lines)


def _median(errors: Iterable[float | None]) -> str:
    measured = [error for error in errors if error is not None]
    return show_error(median(measured)) if measured else "–"


def _short(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
