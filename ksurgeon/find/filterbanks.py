"""Recognise the audio front ends of other libraries, each proved by comparing it with its replacement."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import nn

from ksurgeon.errors import StructureError
from ksurgeon.find.layers import kept_outside
from ksurgeon.find.recording import Call, Recording, TensorSpec
from ksurgeon.find.site import Site
from ksurgeon.find.unchanged import example_run
from ksurgeon.frontend import KFrontend
from ksurgeon.frontend.modules import known_name, replacement_of

__all__ = ["find_filterbanks", "inside_of"]


def find_filterbanks(model: nn.Module, recording: Recording | None, outside: Mapping[int, str]) -> list[Site]:
    """Spectrograms, filterbanks and cepstra that are modules; of those inside each other the outermost.

    ``outside`` is what ``held_outside`` gives.
    """
    paths: dict[nn.Module, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        if known_name(module) is not None:
            paths[module].append(path)
    everywhere = [path for found in paths.values() for path in found]
    sites = []
    with example_run(model):
        for module, places in paths.items():
            if not any(
                path.startswith(f"{outer}.") or not outer
                for path in places
                for outer in everywhere
                if outer != path
            ):
                sites.append(_site(module, places, recording, kept_outside(module, outside)))
    return sites


def inside_of(site: Site, others: list[Site]) -> bool:
    """Whether the site lies inside one of the others, which are modules."""
    return any(
        site.owner == path or site.owner.startswith(f"{path}.")
        for other in others
        for path in (other.path, *other.aliases)
    )


def _site(module: nn.Module, places: list[str], recording: Recording | None, reason: str | None) -> Site:
    parameters = sum(parameter.numel() for parameter in module.parameters())
    facts: dict[str, Any] = {"module": known_name(module)}
    sizes, reason = (1, 1), reason or _called_otherwise(module, recording)
    try:
        new = replacement_of(module)
    except StructureError as error:
        reason = reason or str(error)
    except Exception as error:
        reason = reason or f"it does not run on a waveform ({type(error).__name__}: {error})"
    else:
        filters = sum(p.numel() for name, p in new.named_parameters() if not name.startswith("dft."))
        facts["filters"] = filters
        if isinstance(new, KFrontend):
            facts |= {"transform": "rdft", "n": new.dft.n}
            matrix = new.filters
            sizes = (new.dft.n, new.dft.out_features if matrix is None else matrix.out_features)
        else:
            sizes = (new.filters.in_features, new.filters.out_features)
    if not places[0]:
        reason = "it is the whole model; put it inside another module to replace it"
    return Site(
        kind="filterbank",
        path=places[0],
        owner=places[0],
        aliases=tuple(places[1:]),
        in_features=sizes[0],
        out_features=sizes[1],
        reason=reason,
        class_name=type(module).__name__,
        parameters=parameters,
        weight_parameters=parameters,
        facts=facts,
    )


def _called_otherwise(module: nn.Module, recording: Recording | None) -> str | None:
    """Why the call in the example run was not one with a single tensor that the replacement takes."""
    if recording is None:
        return None
    call: Call | None = recording.first.get(id(module))
    if call is None:
        return "its forward was not called in the example run"
    if call.kwargs or len(call.args) != 1 or not isinstance(call.args[0], TensorSpec):
        return "its forward was called with more than one tensor"
    if known_name(module) in ("speechbrain.STFT", "speechbrain.Filterbank"):
        several = len(call.args[0].shape) > (2 if known_name(module) == "speechbrain.STFT" else 3)
        return "it was called with several channels" if several else None
    return None
