"""Which linear maps are found in whole libraries: ``python -m benchmarks.survey --json FILE``.

Small models with random weights (``benchmarks.tiny``) are run once under an oracle that notes, below
ksurgeon, every parameter that takes part in a matrix product, and once by the finder. The file has one line a
model; models that it has already are not looked at again.
"""

import argparse
import json
import re
import signal
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from benchmarks.oracle import Oracle
from benchmarks.round_trip import round_trip
from ksurgeon.errors import KsurgeonError
from ksurgeon.find import Finder, Site
from ksurgeon.find.inputs import as_call, evaluating
from ksurgeon.models.inputs import Inputs, inputs_for
from ksurgeon.survey.tiny import build, names

_SIZES = re.compile(r",? ?\(\d[^)]*\)")
LIBRARIES = ("timm", "torchvision", "transformers")


def look_at(library: str, name: str, convert: bool = False) -> dict[str, Any]:
    """What the finder and the oracle say of one model; ``state`` tells how far it came.

    With ``convert`` the model goes through ``round_trip``, too.
    """
    failure = ""
    try:
        for model in build(library, name):
            try:
                inputs = inputs_for(model)
                args, kwargs = as_call(inputs)
                with evaluating(model):
                    model(*args, **kwargs)
            except Exception as error:
                failure = failure or f"{type(error).__name__}: {str(error).strip()[:120]}"
                continue
            told = compare(model, inputs)
            return told | ({"round_trip": _attempt(model, inputs)} if convert else {})
    except Exception as error:
        return {"state": "not built", "reason": str(error)[:200]}
    return {"state": "not run", "reason": failure}


def _attempt(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    try:
        return round_trip(model, inputs)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error).strip()[:200]}"}


def compare(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Sites, traces and coverage of one model."""
    args, kwargs = as_call(inputs)
    oracle = Oracle(model)
    with evaluating(model), oracle:
        model(*args, **kwargs)
    begin = time.perf_counter()
    finder = Finder(model, inputs)
    seconds = time.perf_counter() - begin
    replaceable = _covered(model, [site for site in finder.sites if site.reason is None])
    covered = _covered(model, finder.sites)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters(remove_duplicate=False)}
    return {
        "state": "analysed",
        "seconds": round(seconds, 2),
        "kinds": dict(Counter(site.kind for site in finder.sites)),
        "traced": len(finder.traces),
        "failures": {
            f"{type(model.get_submodule(path)).__name__}: {reason[:100]}": 1
            for path, reason in finder.failures.items()
        },
        "untraced": len(finder.failures),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "linear": sum(sizes[name] for name in oracle.found),
        "replaceable": sum(sizes[name] for name in oracle.found & replaceable),
        "listed": sum(sizes[name] for name in oracle.found & covered),
        "missed": sorted(oracle.found - covered)[:8],
        "reasons": dict(Counter(site.reason for site in finder.sites if site.reason)),
    }


def _covered(model: nn.Module, sites: Iterable[Site]) -> set[str]:
    """Names of the parameters that sites stand for."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    covered: set[str] = set()
    for site in sites:
        if site.parameter:
            covered.update(names[id(model.get_parameter(site.path))])
        elif not site.nodes:
            for parameter in model.get_submodule(site.path).parameters():
                covered.update(names[id(parameter)])
    return covered


def table(lines: Iterable[dict[str, Any]]) -> str:
    """The results as a page in Markdown: a table by library, then what is left or not traced."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        rows[line["library"]].append(line)
    text = [
        "# Linear maps found in timm, torchvision and transformers",
        "",
        "Made by `python -m benchmarks.survey`: small models with random weights, each run once under an",
        "oracle that notes at PyTorch's operators every parameter that takes part in a matrix product, and",
        "once by the finder. *Found* are weights that are a site or stand under a reason, *replaceable* are",
        "those without one; *missed* counts models with a weight in a product of which the finder is silent.",
        "",
        "| library | models | analysed | modules traced | linear weights found | replaceable | missed |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for library, results in rows.items():
        done = [line for line in results if line["state"] == "analysed"]
        linear = sum(line["linear"] for line in done) or 1
        traced, untraced = (sum(line[key] for line in done) for key in ("traced", "untraced"))
        models = f"{len(results)} of {len(names(library))}"
        text.append(
            f"| {library} | {models} | {len(done)} | {traced / max(1, traced + untraced):.2%} of "
            f"{traced + untraced} | {sum(line['listed'] for line in done) / linear:.2%} | "
            f"{sum(line['replaceable'] for line in done) / linear:.2%} | "
            f"{sum(bool(line['missed']) for line in done)} models |"
        )
    trips = [line for results in rows.values() for line in results if "round_trip" in line]
    if trips:
        failed = [line for line in trips if line["round_trip"]["failed"]]
        passed = f"{len(trips) - len(failed)} of {len(trips)}"
        text += ["", f"{passed} models were converted exactly, run, trained, saved, loaded and reverted."]
        text += [f"- {line['library']} {line['name']}: {line['round_trip']['failed']}" for line in failed]
    reasons: Counter[str] = Counter()
    for line in (line for results in rows.values() for line in results if line["state"] == "analysed"):
        reasons.update({_SIZES.sub("", reason): number for reason, number in line["reasons"].items()})
    text += ["", "Sites that are left, by reason:", ""]
    text += [f"- {number}: {reason}" for reason, number in reasons.most_common()]
    text += ["", "Forwards that do not trace, and models that no small example is known for:", ""]
    for library, results in rows.items():
        for line in results:
            text += [f"- {library} {line['name']}: {failure}" for failure in line.get("failures", ())]
            if line["state"] != "analysed":
                text.append(f"- {library} {line['name']}: {line['state']}: {line['reason'][:120]}")
    return "\n".join(text)


def _alarm(*_: object) -> None:
    raise TimeoutError("took too long")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file of results, one line a model")
    parser.add_argument("--library", choices=LIBRARIES, action="append")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th model only")
    parser.add_argument("--convert", action="store_true", help="convert, save, load and revert each, too")
    parser.add_argument("--seconds", type=int, default=90, help="CPU time for one model")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _quiet()
    known = (
        [json.loads(line) for line in options.json.read_text().splitlines()] if options.json.exists() else []
    )
    seen = {(line["library"], line["name"]) for line in known}
    console = Console(stderr=True)
    signal.signal(signal.SIGPROF, _alarm)
    with options.json.open("a") as file:
        for library in options.library or LIBRARIES:
            for name in names(library)[:: options.every]:
                if (library, name) in seen:
                    continue
                signal.setitimer(signal.ITIMER_PROF, options.seconds)
                try:
                    result = look_at(library, name, options.convert)
                except (TimeoutError, KsurgeonError, RuntimeError) as error:
                    result = {"state": "failed", "reason": f"{type(error).__name__}: {error}"[:200]}
                finally:
                    signal.setitimer(signal.ITIMER_PROF, 0)
                line = {"library": library, "name": name, **result}
                known.append(line)
                print(json.dumps(line), file=file, flush=True)
                console.print(
                    library, name, result["state"], result.get("reason", ""), result.get("missed", "")
                )
    print(table(known))


def _quiet() -> None:
    import transformers

    transformers.logging.set_verbosity_error()


if __name__ == "__main__":
    main()
