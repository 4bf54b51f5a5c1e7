"""``ksurgeon find``."""

import json as json_module
from dataclasses import asdict

from ksurgeon.cli.commands import Find
from ksurgeon.cli.console import out, status
from ksurgeon.cli.opening import open_asked
from ksurgeon.find import Finder
from ksurgeon.models.names import parse
from ksurgeon.report.terminal import show_insertions, show_sites

__all__ = ["run"]


def run(asked: Find) -> None:
    weights = "auto" if parse(asked.model)[0] == "ksurgeon" else asked.weights
    loaded = open_asked(asked.model, asked, weights)
    with status("running the model once and tracing its modules"):
        finder = Finder(loaded.model, loaded.example_inputs)
    if asked.json:
        sites = [asdict(site) for site in (finder.insertions if asked.insertions else finder.sites)]
        print(
            json_module.dumps({"model": asked.model, "sites": sites, "not_traced": finder.failures}, indent=1)
        )
        return
    if asked.insertions:
        show_insertions(out, finder.insertions, everything=asked.all)
        return
    show_sites(out, finder.sites, finder.failures, everything=asked.all)
