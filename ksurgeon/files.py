"""Reading text files that anybody may have written, with any editor: regular files only, of a size that has a
limit, in UTF-8 or what the byte order mark at the beginning says."""

import codecs
import json
import os
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["encoding_of", "parse_json", "parse_toml", "read_regular", "require_regular"]

_MARKS = (  # the longer ones first
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_LARGEST = 16 * 2**20
_DEEPEST = 64
_INTEGERS = range(-(2**63), 2**64)


def require_regular(file: Path) -> None:
    """Return if the file is a regular one, which a FIFO, a device and a folder are not.

    Raises:
        OSError: it is none, or not there.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(0, "not a regular file", str(file))


def read_regular(file: Path, largest: int = _LARGEST) -> str:
    """Text of a regular file, of ``largest`` bytes at most; never waits for a FIFO or a device.

    Raises:
        OSError: it is not there, no regular file, or larger.
        UnicodeDecodeError: it is no text.
    """
    # O_NONBLOCK: to open a FIFO would wait for its other end.
    with open(file, "rb", opener=lambda name, flags: os.open(name, flags | _NONBLOCK)) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(0, "not a regular file", str(file))
        content = stream.read(largest + 1)
    if len(content) > largest:
        raise OSError(0, f"larger than {largest >> 20} MiB", str(file))
    return content.decode(_encoding(content)).replace("\r\n", "\n")


def encoding_of(file: Path) -> str:
    """The encoding to open a text file with, so that no byte order mark becomes part of the text.

    Raises:
        OSError: the file cannot be read.
    """
    with file.open("rb") as stream:
        return _encoding(stream.read(4))


def _encoding(content: bytes) -> str:
    return next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8-sig")


_NONBLOCK = getattr(os, "O_NONBLOCK", 0)


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is not valid, nested more than 64 levels deep, or has an integer of more than 64 bits.
    """
    return _parsed(json.loads, text)


def parse_toml(text: str) -> dict[str, Any]:
    """What a TOML text says.

    Raises:
        ValueError: as of ``parse_json``.
    """
    data: dict[str, Any] = _parsed(tomllib.loads, text)
    return data


def _parsed(parse: Any, text: str) -> Any:
    try:
        data = parse(text)
    except RecursionError:
        raise ValueError(f"nested more than {_DEEPEST} levels deep") from None
    for value, depth in _walk(data):
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} levels deep")
        if isinstance(value, int) and value not in _INTEGERS:
            raise ValueError("an integer of more than 64 bits")
        if isinstance(value, str) and ("\0" in value or not _is_unicode(value)):
            raise ValueError("a text with a NUL or half a surrogate pair in it")
    return data


def _walk(data: Any) -> Iterator[tuple[Any, int]]:
    """Every value and every key, with its depth."""
    waiting = [(data, 0)]
    while waiting:
        value, depth = waiting.pop()
        yield value, depth
        if isinstance(value, dict):
            waiting += [(each, depth + 1) for pair in value.items() for each in pair]
        elif isinstance(value, list):
            waiting += [(each, depth + 1) for each in value]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
