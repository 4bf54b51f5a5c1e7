"""``ksurgeon revert``."""

import json as json_module
from pathlib import Path

from rich.text import Text

from ksurgeon.cli.commands import Revert
from ksurgeon.cli.console import out, status
from ksurgeon.cli.target import agree_on_target
from ksurgeon.kernels import chosen_backend
from ksurgeon.surgery.record import record_of
from ksurgeon.surgery.revert import revert
from ksurgeon.surgery.storage import load, save

__all__ = ["run"]


def run(asked: Revert) -> None:
    chosen_backend()
    source = Path(asked.folder)
    target = agree_on_target(asked.output or source.with_name(source.resolve().name + "-dense"), asked.yes)
    with status(f"loading {asked.folder}"):
        model = load(source, trust_remote_code=asked.trust_remote_code)
    before = record_of(model)
    revert(model)
    after = record_of(model)
    assert before is not None and after is not None
    save(model, target, files_from=source)
    dense = len(after.operations)
    if asked.json:
        print(
            json_module.dumps(
                {"folder": str(target), "reverted": len(before.operations), "dense_maps": dense}
            )
        )
        return
    many = f"{len(before.operations)} sites reverted"
    if before.folded:
        many += f", {len(before.folded)} batch norms taken out of their layers"
    out.print(Text.assemble((many, "bold"), f", written to {target}"), highlight=False)
    out.print(
        f"{dense} trained map{'s' * (dense != 1)} became {'dense layers' if dense != 1 else 'a dense layer'} "
        "where the architecture has none; load with "
        f"ksurgeon.load({str(target)!r}{', trust_remote_code=True' if asked.trust_remote_code else ''})"
        if dense
        else "model.safetensors there is a state_dict of the original architecture; it needs no ksurgeon.",
        highlight=False,
    )
