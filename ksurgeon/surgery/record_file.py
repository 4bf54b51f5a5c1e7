"""Reading a record: from ``ksurgeon.json``, or from what ``save_pretrained`` of transformers wrote."""

import re
from pathlib import Path

from pydantic import ValidationError

from ksurgeon.errors import KindError, RecordError
from ksurgeon.files import parse_json, read_regular
from ksurgeon.models.source import Source
from ksurgeon.surgery.record import Record, own_version

__all__ = ["RECORD_FILE", "parse_record", "read_record"]

RECORD_FILE = "ksurgeon.json"
_CONFIG_FILE = "config.json"
_SCHEMA = 1


def read_record(folder: str | Path) -> Record:
    """The record in a folder: ``ksurgeon.json``, or what ``save_pretrained`` of transformers wrote of it into
    ``config.json``.

    Raises:
        RecordError: there is none, it is damaged, or a newer ksurgeon wrote it.
    """
    file = Path(folder) / RECORD_FILE
    data = _read_json(file)
    if data is not None:
        return parse_record(data, file)
    config = _read_json(Path(folder) / _CONFIG_FILE)
    method = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(method, dict) or not isinstance(method.get("record"), dict):
        raise RecordError(
            f"{folder} holds no {RECORD_FILE}: it is no model that ksurgeon saved; give a folder that "
            "`ksurgeon convert … -o FOLDER`, ksurgeon.save or save_pretrained of a converted model wrote"
        )
    record = parse_record(method["record"], Path(folder) / _CONFIG_FILE)
    assert isinstance(config, dict)
    plain = {
        key: value
        for key, value in config.items()
        if key not in ("quantization_config", "transformers_weights")
    }
    source = record.source or Source(kind="transformers", name=str(folder))
    source = source.model_copy(update={"options": {**source.options, "config": plain}})
    record.source = source.as_read()
    return record


def _read_json(file: Path) -> object | None:
    """What the file holds; None if there is none."""
    try:
        text = read_regular(file)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{file} cannot be read: {getattr(error, 'strerror', error)}") from error
    try:
        return parse_json(text)
    except ValueError as error:
        raise RecordError(f"{file} is damaged: not valid JSON ({error}); convert the model again") from error


def parse_record(data: object, file: str | Path) -> Record:
    """The record that plain data, read from ``file``, stands for.

    Raises:
        RecordError: it is damaged, or a newer ksurgeon wrote it.
    """
    written = data.get("schema") if isinstance(data, dict) else None
    if isinstance(data, dict) and isinstance(written, int) and written > _SCHEMA:
        raise RecordError(
            f"{file} has schema {written}, this ksurgeon knows schema {_SCHEMA}; it was written by a newer "
            f"ksurgeon ({data.get('ksurgeon', 'unknown')}): install that version or later"
        )
    try:
        record = Record.model_validate(data)
        if record.source is not None:
            record.source = record.source.as_read()
        return record
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(reason := first.get("ctx", {}).get("error"), KindError):
            raise RecordError(f"{file}: {reason}") from error
        if first["type"] == "structure":
            raise RecordError(f"{file}: {first['msg']}") from error
        where = ".".join(map(str, first["loc"])) or "the top"
        own = own_version()
        if isinstance(data, dict) and _numbers(data.get("ksurgeon")) > _numbers(own) > []:
            raise RecordError(
                f"{file} was written by a newer ksurgeon ({data['ksurgeon']}) than this one ({own}), which "
                f"does not know what is at {where}: install that version or later"
            ) from error
        raise RecordError(f"{file} is damaged at {where}: {first['msg']}; convert the model again") from error


def _numbers(release: object) -> list[int]:
    """The numbers of a release, to compare; none of "unknown", or where they are no release's."""
    return [int(part) for part in re.findall(r"\d+", str(release))[:3] if len(part) < 10]
