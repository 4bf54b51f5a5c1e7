"""``ksurgeon find``."""

import json as json_module
from dataclasses import asdict

from ksurgeon.cli.console import out, status
from ksurgeon.cli.opening import open_on
from ksurgeon.find import Finder
from ksurgeon.models.names import parse
from ksurgeon.report.terminal import show_insertions, show_sites

__all__ = ["run"]


def run(
    model: str,
    weights: str,
    input_size: str | None,
    seed: int,
    device: str,
    trust_remote_code: bool,
    insertions: bool,
    json: bool,
    everything: bool,
) -> None:
    if parse(model)[0] == "ksurgeon":
        weights = "auto"
    loaded = open_on(model, weights, input_size, seed, device, trust_remote_code)
    with status("running the model once and tracing its modules"):
        finder = Finder(loaded.model, loaded.example_inputs)
    if json:
        sites = [asdict(site) for site in (finder.insertions if insertions else finder.sites)]
        print(json_module.dumps({"model": model, "sites": sites, "not_traced": finder.failures}, indent=1))
        return
    if insertions:
        show_insertions(out, finder.insertions, everything=everything)
        return
    show_sites(out, finder.sites, finder.failures, everything=everything)
