"""``ksurgeon revert``."""

import json as json_module
from pathlib import Path

from ksurgeon.cli.console import out, status
from ksurgeon.cli.target import agree_on_target
from ksurgeon.surgery.record import record_of
from ksurgeon.surgery.revert import revert
from ksurgeon.surgery.storage import load, save

__all__ = ["run"]


def run(folder: str, output: str | None, yes: bool, json: bool) -> None:
    source = Path(folder)
    target = agree_on_target(output or source.with_name(source.resolve().name + "-dense"), yes)
    with status(f"loading {folder}"):
        model = load(source)
    before = record_of(model)
    revert(model)
    after = record_of(model)
    assert before is not None and after is not None
    save(model, target, files_from=source)
    dense = len(after.operations)
    if json:
        print(
            json_module.dumps(
                {"folder": str(target), "reverted": len(before.operations), "dense_maps": dense}
            )
        )
        return
    out.print(f"[bold]{len(before.operations)} sites reverted[/], written to {target}", highlight=False)
    out.print(
        f"{dense} trained shuffle{'s' * (dense != 1)} became dense layers inside a forward; load with "
        f"ksurgeon.load({str(target)!r})"
        if dense
        else "model.safetensors there is a state_dict of the original architecture; it needs no ksurgeon.",
        highlight=False,
    )
