"""``ksurgeon show``."""

import json as json_module

from ksurgeon.cli.console import out
from ksurgeon.report.terminal import show_record
from ksurgeon.surgery.record_file import read_record

__all__ = ["run"]


def run(folder: str, json: bool, everything: bool) -> None:
    record = read_record(folder)
    if json:
        print(json_module.dumps(json_module.loads(record.model_dump_json()), indent=1))
        return
    show_record(out, record, everything=everything)
