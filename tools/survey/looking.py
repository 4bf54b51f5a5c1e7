"""Look at one model: what the finder says, and what the run itself shows."""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable

from torch import nn

from ksurgeon.find import Finder, Site
from ksurgeon.find.inputs import as_call, evaluating
from ksurgeon.models.inputs import Inputs, inputs_for
from tools.survey.movers import movers
from tools.survey.oracle import Oracle
from tools.survey.result import Result, State
from tools.survey.round_trip import round_trip
from tools.survey.tiny import build

__all__ = ["compare", "look_at"]

_LIBRARY = re.compile(r"ImportError|ModuleNotFoundError|[Rr]equires? the .* librar")
_MOST_TOLD = 8


def look_at(library: str, name: str, convert: bool = False) -> Result:
    """What the finder and the oracles say of one model, and how far it came.

    The first of the model's sizes that runs is looked at.

    Args:
        library, name: as ``tiny.names`` has them.
        convert: whether it is converted exactly, saved, loaded and reverted, too.
    """
    failure = ""
    models = build(library, name)
    while True:
        try:
            model = next(models, None)
        except Exception as error:
            told = _told(error, 240)
            state: State = "not installed" if _LIBRARY.search(told) else "not built"
            return Result(library=library, name=name, state=state, reason=told)
        if model is None:
            return Result(library=library, name=name, state="not run", reason=failure)
        try:
            inputs = inputs_for(model)
            _run(model, inputs)
        except Exception as error:
            failure = failure or _told(error)
            continue
        try:
            result = compare(library, name, model, inputs)
        except Exception as error:
            return Result(library=library, name=name, state="failed", reason=_told(error))
        return result.model_copy(update={"trip": round_trip(model, inputs)}) if convert else result


def _told(error: Exception, length: int = 160) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:length]


def _run(model: nn.Module, inputs: Inputs) -> None:
    args, kwargs = as_call(inputs)
    with evaluating(model):
        model(*args, **kwargs)


def compare(library: str, name: str, model: nn.Module, inputs: Inputs) -> Result:
    """Sites, traces and coverage of one model that runs on its inputs."""
    args, kwargs = as_call(inputs)
    oracle = Oracle(model)
    with evaluating(model):
        with oracle.watching():
            model(*args, **kwargs)
        moving = movers(model, lambda: model(*args, **kwargs))
    begin = time.process_time()
    finder = Finder(model, inputs)
    seconds = time.process_time() - begin
    replaceable = _covered(model, [site for site in finder.sites if site.reason is None])
    covered = _covered(model, finder.sites)
    sizes = {path: parameter.numel() for path, parameter in model.named_parameters(remove_duplicate=False)}
    missed = sorted(oracle.found - covered)
    missed += [f"Fourier transform in {path}" for path in _missed_transforms(oracle, finder)]
    missed += [f"permutation {path}" for path in moving if not _is_told_of(path, finder)]
    return Result(
        library=library,
        name=name,
        state="analysed",
        seconds=round(seconds, 2),
        kinds=dict(Counter(site.kind for site in finder.sites)),
        traced=len(finder.traces),
        failures=dict(
            Counter(
                f"{type(model.get_submodule(path)).__name__}: {reason[:100]}"
                for path, reason in finder.failures.items()
            )
        ),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        linear=sum(sizes[path] for path in oracle.found),
        listed=sum(sizes[path] for path in oracle.found & covered),
        replaceable=sum(sizes[path] for path in oracle.found & replaceable),
        missed=tuple(missed[:_MOST_TOLD]),
        reasons=dict(Counter(site.reason for site in finder.sites if site.reason)),
    )


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


def _missed_transforms(oracle: Oracle, finder: Finder) -> list[str]:
    """Paths of modules that run more Fourier transforms than their sites have nodes, and no reason tells."""
    missed = []
    for path, count in oracle.transforms.items():
        if path in finder.failures:
            continue
        known = 0
        for site in finder.sites:
            if site.kind == "filterbank" and _is_inside(path, site.path):
                known = count
            elif site.kind == "transform" and site.owner == path:
                known += len(site.nodes) or count
        if known < count:
            missed.append(path)
    return missed


def _is_told_of(path: str, finder: Finder) -> bool:
    """Whether a module that reorders its input has a site or a reason, at its path or below."""
    return any(_is_inside(known, path) for known in finder.failures) or any(
        site.kind in ("permutation", "channel_shuffle") and _is_inside(site.owner, path)
        for site in finder.sites
    )


def _is_inside(path: str, outer: str) -> bool:
    return not outer or path == outer or path.startswith(f"{outer}.")
