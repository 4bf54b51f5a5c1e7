"""The results of a survey as a page in Markdown."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

from tools.survey.result import Result
from tools.survey.tiny import LIBRARIES, names

__all__ = ["models", "page", "share", "summary"]

_SIZES = re.compile(r",? ?\(\d[^)]*\)|\b\d+\b")
_INTRODUCTION = """\
# Linear maps found in timm, torchvision and transformers

Made by `python -m tools.survey --json survey.jsonl --table docs/coverage.md` with {versions}: small models
with random weights (one of each module of timm, torchvision's for classification, detection and segmentation,
every model type of transformers). Each runs once while an oracle watches PyTorch's own operators, and once
through the finder.

- *Found*: the weight of a matrix product is a site, or is listed with the reason why it is not.
- *Replaceable*: it is a site.
- *Missed*: models with a weight in a product, a Fourier transform, or a module that only reorders its input,
  that the finder does not report.
- *Not buildable here*: the model needs a library that is not installed.

Shares are rounded down. Every model is in [{models}]({models}): modules traced and not traced, sites of each
kind, and CPU seconds of the finder.
"""


def share(part: int, whole: int) -> str:
    """A percentage that is 100 only where nothing is left: it is rounded down."""
    if whole == 0:
        return "–"
    hundredths = 10_000 * part // whole
    return f"{hundredths // 100}.{hundredths % 100:02d}%"


def summary(results: Sequence[Result]) -> str:
    """A table in Markdown with a row for each library."""
    rows = [
        "| library | models | not buildable here | analysed | modules traced | linear weights found "
        "| replaceable | missed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for library, mine in _by_library(results):
        done = [result for result in mine if result.state == "analysed"]
        absent = sum(result.state == "not installed" for result in mine)
        linear = sum(result.linear for result in done)
        traced = sum(result.traced for result in done)
        modules = traced + sum(result.untraced for result in done)
        missed = [result for result in done if result.missed]
        cells = [
            library,
            f"{len(mine)} of {len(names(library))}",
            f"{absent}",
            f"{len(done)}, {share(len(done), len(mine) - absent)}",
            f"{share(traced, modules)} of {modules}",
            share(sum(result.listed for result in done), linear),
            share(sum(result.replaceable for result in done), linear),
            f"{len(missed)} models",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def page(results: Sequence[Result], models: str = "coverage.csv") -> str:
    """The whole page: the summary, and what is left and why.

    Args:
        models: the name of the file beside it that has every model.
    """
    parts = [_INTRODUCTION.format(versions=_versions(), models=models), summary(results)]
    parts += ["## Sites, by kind", _kinds(results)]
    parts += _missed(results) + _trips(results)
    parts += ["## Sites that are left, by reason", _counted(_reasons(results))]
    parts += ["## Forwards that do not trace, by class and reason", _counted(_failures(results))]
    parts += ["## Models that were not analysed", _listed(_not_analysed(results))]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def models(results: Iterable[Result]) -> str:
    """A line of CSV for each model that was analysed."""
    done = [r for _, mine in _by_library(results) for r in mine if r.state == "analysed"]
    kinds = sorted({kind for result in done for kind in result.kinds})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["library", "model", "traced", "not traced", *kinds, "seconds"])
    for r in done:
        sites = [r.kinds.get(kind, 0) for kind in kinds]
        writer.writerow([r.library, r.name, r.traced, r.untraced, *sites, f"{r.seconds:.1f}"])
    return text.getvalue()


def _by_library(results: Iterable[Result]) -> list[tuple[str, list[Result]]]:
    grouped = {library: [r for r in results if r.library == library] for library in LIBRARIES}
    return [(library, sorted(mine, key=lambda r: r.name)) for library, mine in grouped.items() if mine]


def _versions() -> str:
    told = []
    for name in ("torch", *LIBRARIES):
        try:
            told.append(f"{name} {version(name).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return ", ".join(told)


def _missed(results: Iterable[Result]) -> list[str]:
    lines = [
        f"{r.library} {r.name}: {', '.join(f'`{name}`' for name in r.missed)}" for r in results if r.missed
    ]
    return ["## Missed", _listed(lines)] if lines else []


def _trips(results: Iterable[Result]) -> list[str]:
    trips = [(result, result.trip) for result in results if result.trip is not None]
    if not trips:
        return []
    failed = [
        f"{result.library} {result.name}: {_plain(trip.failed)}" for result, trip in trips if trip.failed
    ]
    speaking = sum(trip.generated > 0 for _, trip in trips)
    shaky = sum(not trip.steady for _, trip in trips)
    text = (
        f"{len(trips) - len(failed)} of {len(trips)} models passed: every linear layer and pointwise "
        "convolution was converted exactly, with the same outputs, gradients and generated tokens "
        f"({speaking} models generate), then saved, loaded into a model with other weights, and reverted. "
        + (f"{shaky} amplify rounding; there the layers were compared one by one. " if shaky else "")
        + "Those that did not:"
    )
    return ["## Exact round trips", text, _listed(failed)]


def _reasons(results: Iterable[Result]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for result in results:
        for reason, number in result.reasons.items():
            counts[
                _SIZES.sub("", reason) if "tied to" not in reason else "its weight is tied to another"
            ] += number
    return counts


def _failures(results: Iterable[Result]) -> Counter[str]:
    return sum((Counter(result.failures) for result in results), Counter())


def _not_analysed(results: Iterable[Result]) -> list[str]:
    return [
        f"{r.library} {r.name}: {r.state}: {_plain(r.reason)[:160]}" for r in results if r.state != "analysed"
    ]


def _counted(counts: Counter[str]) -> str:
    return _listed([f"{number}: {_plain(text)}" for text, number in counts.most_common()])


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) or "None."


def _kinds(results: Iterable[Result]) -> str:
    """A table in Markdown: sites of each kind, by library."""
    grouped = _by_library(results)
    kinds = sorted({kind for _, mine in grouped for result in mine for kind in result.kinds})
    rows = [f"| library | {' | '.join(kinds)} |", "|---|" + "---:|" * len(kinds)]
    for library, mine in grouped:
        counts = [f"{sum(result.kinds.get(kind, 0) for result in mine):,}" for kind in kinds]
        rows.append(f"| {library} | {' | '.join(counts)} |")
    return "\n".join(rows)


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
