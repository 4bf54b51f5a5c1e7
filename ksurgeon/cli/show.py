"""``ksurgeon show``."""

import json as json_module

from ksurgeon.cli.commands import Show
from ksurgeon.cli.console import out
from ksurgeon.report.terminal import show_record
from ksurgeon.surgery.record_file import read_record

__all__ = ["run"]


def run(asked: Show) -> None:
    record = read_record(asked.folder)
    if asked.json:
        print(json_module.dumps(json_module.loads(record.model_dump_json()), indent=1))
        return
    show_record(out, record, everything=asked.all)
