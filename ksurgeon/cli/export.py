"""``ksurgeon export``."""

import inspect
import json as json_module
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich.markup import escape
from rich.table import Table
from torch import nn

from ksurgeon.cli.commands import Export
from ksurgeon.cli.console import out, status
from ksurgeon.cli.opening import open_on
from ksurgeon.cli.target import agree_on_file
from ksurgeon.export import FORMATS, Exported, export_model, onnx_library
from ksurgeon.models.inputs import Inputs
from ksurgeon.models.opening import LoadedModel
from ksurgeon.report.measure import clock, in_turns
from ksurgeon.surgery.record import record_of
from ksurgeon.surgery.revert import revert

__all__ = ["run"]

_RUNS = {"onnx": "onnxruntime", "pt2": "torch.export, run eagerly", "aoti": "AOTInductor"}


def run(asked: Export) -> None:
    suffix = FORMATS[asked.to].suffix if asked.to in FORMATS else ""
    target = agree_on_file(asked.output or Path(asked.folder).name.replace(":", "-") + suffix, asked.yes)
    loaded = open_on(asked.folder, "auto", asked.input_size, asked.seed, "cpu", asked.trust_remote_code)
    loaded = replace(loaded, make_inputs=partial(_as_tokenized, loaded.example_inputs))
    with status(f"exporting to {asked.to}"):
        exported = export_model(
            loaded.model, target, loaded.example_inputs, to=asked.to, kernels=asked.kernels
        )
    facts: dict[str, object] = {
        "file": str(target),
        "to": asked.to,
        "open": exported.opened,
        "bytes": exported.size,
        "largest_error": exported.largest_error,
    }
    if asked.kernels:
        facts["library"] = onnx_library()
    record = record_of(loaded.model)
    if asked.compare and record is not None and record.operations:
        facts |= _beside_dense(loaded, exported)
    if asked.json:
        print(json_module.dumps(facts, indent=1))
        return
    _show(exported, facts)


def _as_tokenized(inputs: Inputs, model: nn.Module) -> Inputs:
    """The inputs, and ``token_type_ids`` where the model's tokenizer gives them, too."""
    types = getattr(getattr(model, "config", None), "type_vocab_size", 0) or 0
    takes = "token_type_ids" in inspect.signature(model.forward).parameters
    if not isinstance(inputs, dict) or types < 2 or not takes or "input_ids" not in inputs:
        return inputs
    return {"token_type_ids": torch.zeros_like(inputs["input_ids"]), **inputs}


def _beside_dense(loaded: LoadedModel, exported: Exported) -> dict[str, object]:
    """Size and latency of the same model with dense layers, exported the same way."""
    revert(loaded.model)
    suffix = exported.file.suffix
    beside = exported.file.with_name(f".{exported.file.name[:60]}.dense{suffix}")
    try:
        with status("exporting the model with dense layers, for comparison"):
            dense = export_model(loaded.model, beside, loaded.example_inputs, to=exported.to)
        inputs = loaded.example_inputs
        with status("measuring latency, dense and converted interleaved"):
            before, after = in_turns(
                lambda: clock(lambda: dense.run(inputs)), lambda: clock(lambda: exported.run(inputs))
            )
    finally:
        for file in beside.parent.glob(f"{beside.name}*"):
            file.unlink()
    return {"dense_bytes": dense.size, "latency": (median(before), median(after))}


def _show(exported: Exported, facts: dict[str, object]) -> None:
    out.print(f"[bold]Written to {escape(str(exported.file))}[/]", highlight=False)
    opened = {"nothing": "no dimension", "batch": "the batch", "batch and length": "batch and length"}
    out.print(
        f"  {opened[exported.opened]} may have any size; outputs differ from the model's by at most "
        f"{exported.largest_error:.0e} of the largest",
        highlight=False,
    )
    if "library" in facts:
        out.print(
            f"  its operators are in {escape(str(facts['library']))}:\n"
            "  options.register_custom_ops_library(ksurgeon.onnx_library()), or a copy of that file",
            highlight=False,
        )
    if "latency" not in facts:
        out.print(f"  {exported.size:,} bytes", highlight=False)
        return
    dense, size, latency = facts["dense_bytes"], exported.size, facts["latency"]
    assert isinstance(dense, int) and isinstance(latency, tuple)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(("", "dense", "converted", "converted / dense")):
        table.add_column(column, justify="right" if number else "left")
    table.add_row("bytes", f"{dense:,}", f"{size:,}", f"{size / dense:.2f}×")
    table.add_row("latency, ms", f"{latency[0]:.2f}", f"{latency[1]:.2f}", f"{latency[1] / latency[0]:.2f}×")
    out.print(table)
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() != 1)}"
    out.print(
        f"[dim]latency: median of interleaved runs, {_RUNS[exported.to]}, {threads}[/]",
        highlight=False,
    )
