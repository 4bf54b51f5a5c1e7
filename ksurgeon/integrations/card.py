"""A model card from a record: what was replaced, how far it is from the original, and how to load it."""

from pathlib import Path
from statistics import median

from ksurgeon.site_kinds import site_kind
from ksurgeon.surgery.record import Operation, Record

__all__ = ["CARD_FILE", "is_replaceable", "model_card"]

CARD_FILE = "README.md"
_MARK = "<!-- written by ksurgeon -->"
_TEMPLATE = "This model card has been automatically generated"
_ROWS = 200


def is_replaceable(file: Path) -> bool:
    """Whether nobody wrote the card: ``model_card`` made it, or transformers did from its template."""
    text = file.read_text(encoding="utf-8", errors="replace")
    return _MARK in text or _TEMPLATE in text


def model_card(record: Record) -> str:
    """Markdown with the metadata block that the Hugging Face hub reads."""
    source = record.source
    name = source.name if source else "a model of unknown source"
    library = {"timm": "timm", "transformers": "transformers"}.get(source.kind if source else "", "pytorch")
    fitted = [o for o in record.operations if o.start != "exact" and not site_kind(o.kind).inserts]
    parts = [
        f"---\nlibrary_name: {library}\ntags:\n- ksurgeon\n- kaleidoscope-matrix\n---\n{_MARK}",
        f"# {Path(name).name} with K-matrices",
        f"{len(record.operations)} linear maps of `{Path(name).name}` are replaced by kaleidoscope matrices "
        "([Dao et al., ICLR 2020](https://openreview.net/forum?id=BkgrBgSYDS)), by "
        f"[ksurgeon](https://pypi.org/project/ksurgeon/) {record.ksurgeon} with the rule "
        f"{', '.join(f'`{rule}`' for rule in record.rules) or 'none'}.",
        *(f"> **Warning.** {warning}" for warning in record.warnings),
        _loading(record),
        _whole(record),
        _advice(fitted),
        _table(record.operations),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _loading(record: Record) -> str:
    source = record.source
    if source is None:  # what builds it is not known
        return _by_ksurgeon(", model=the_architecture", "The architecture is built as before surgery.")
    if source.code is not None:
        return _by_ksurgeon(
            ", trust_remote_code=True", f"This runs {source.code}, which is not in this folder."
        )
    if source.kind != "transformers":
        return _by_ksurgeon("")
    architecture = (source.options.get("config", {}).get("architectures") or ["AutoModel"])[0]
    return (
        "## Load it\n\n```console\n$ pip install ksurgeon\n```\n\n```python\nimport ksurgeon\n"
        f"from transformers import {architecture}\n\n"
        f'model = {architecture}.from_pretrained("FOLDER-OR-ID")\n```\n\n'
        "Without `import ksurgeon` transformers does not know the K-matrices and refuses to load the model.\n"
        "`ksurgeon revert FOLDER` writes it back with dense layers."
    )


def _by_ksurgeon(options: str, note: str = "") -> str:
    code = f'## Load it\n\n```python\nimport ksurgeon\n\nmodel = ksurgeon.load("FOLDER"{options})\n```'
    return f"{code}\n\n{note}".rstrip()


def _whole(record: Record) -> str:
    outcome = record.outcome
    if outcome is None:
        return ""
    rows = [("parameters", *(f"{number:,}" for number in outcome.parameters), _ratio(*outcome.parameters))]
    if outcome.multiplications is not None:
        numbers = (f"{number / 1e6:,.1f} M" for number in outcome.multiplications)
        rows.append(("multiplications per example", *numbers, _ratio(*outcome.multiplications)))
    if outcome.latency is not None:
        times = (f"{time:.1f} ms" for time in outcome.latency)
        rows.append((f"latency, batch {outcome.batch}", *times, _ratio(*outcome.latency)))
    if outcome.output_change is not None:
        rows.append(("change of the outputs, relative", "", f"{outcome.output_change:.2g}", ""))
    lines = ["| | before | after | after / before |", "|---|---:|---:|---:|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    note = (
        f"\n\nLatency: median of interleaved runs on {outcome.device}, {outcome.threads} threads, "
        f"{outcome.backend} kernels."
        if outcome.latency is not None
        else ""
    )
    return "## The whole model\n\n" + "\n".join(lines) + note


def _advice(fitted: list[Operation]) -> str:
    errors = [o.weight_error for o in fitted if o.weight_error is not None]
    if not fitted:
        return "Every replacement is exact: the model computes what it did."
    far = (
        f" of {min(errors):.2f} to {max(errors):.2f} relative (median {median(errors):.2f})" if errors else ""
    )
    how = f"with weight errors{far}" if errors else "drawn at random"
    return f"{len(fitted)} layers started as approximations of what they replace, {how}."


def _table(operations: list[Operation]) -> str:
    lines = [
        "## What was replaced",
        "",
        "| site | by | parameters | → | weight error |",
        "|---|---|---:|---:|---:|",
    ]
    for o in operations[:_ROWS]:
        error = (
            "exact"
            if o.start == "exact" and not o.int8
            else "–"
            if o.weight_error is None
            else f"{o.weight_error:.3f}"
        )
        by = "dense" if o.form == "dense" else str(o.structure)
        lines.append(f"| `{o.path}` | {by} | {o.parameters_before:,} | {o.parameters_after:,} | {error} |")
    if len(operations) > _ROWS:
        lines.append(f"\n… and {len(operations) - _ROWS} more.")
    return "\n".join(lines)


def _ratio(before: float, after: float) -> str:
    return f"{after / before:.2f}×" if before else "–"
