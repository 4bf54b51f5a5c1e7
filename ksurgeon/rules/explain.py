"""Pydantic's errors in the words of a rule file: the key, what is wrong with it, what would be allowed."""

import reprlib
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ksurgeon.kmatrix.structures.reading import keys_of
from ksurgeon.rules.schema import Rule, Where

__all__ = ["explain"]

_Path = tuple[str | int, ...]


def explain(error: ValidationError, data: object, root: type[BaseModel] = Rule) -> str:
    """One line for every key of ``data`` that is wrong; parts of a list are counted from 1.

    ``data`` were to be a ``root``: a rule, or a model whose lists hold tables of the model that the list's
    own type names.
    """
    lines: dict[_Path, list[str]] = {}
    suggested: set[_Path] = set()
    missing: set[_Path] = set()
    for item in error.errors(include_url=False):
        path = _path(item["loc"], data)
        if item["type"] == "extra_forbidden":
            allowed = _keys(path[:-1], data, root)
            near = get_close_matches(str(path[-1]), allowed, n=1)
            suggested |= {(*path[:-1], key) for key in near}
            hint = f'did you mean "{near[0]}"? ' if near else ""
            message = f"unknown key; {hint}allowed: {', '.join(allowed)}"
        elif item["type"] == "missing":
            missing.add(path)
            message = "missing; this key is required" if isinstance(path[-1], str) else "has too few entries"
        elif item["type"] == "default_factory_not_called":
            continue
        elif item["type"] == "structure":
            message = item["msg"]
        else:
            message = _message(item)
        lines.setdefault(path, []).append(message)
    inner = {longer[:end] for longer in lines for end in range(len(longer))}
    return "\n".join(
        f"{_show(path)}: {'; or '.join(dict.fromkeys(messages))}" if path else "; ".join(messages)
        for path, messages in lines.items()
        if path not in inner | (missing & suggested)
    )


def _message(item: ErrorDetails) -> str:
    if item["type"] == "literal_error":
        message = f"allowed: {item['ctx']['expected']}"
    elif item["type"] == "too_short":
        return "empty; at least one entry is required"
    else:
        words = {"tuple_type": "expected a list"}
        words |= dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "expected a table")
        message = words.get(item["type"]) or item["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
    given = item["input"]
    return message if isinstance(given, (dict, list, tuple)) else f"{message}, got {reprlib.repr(given)}"


def _path(loc: Sequence[str | int], data: Any) -> _Path:
    """``loc`` without the names of union members that pydantic puts into it."""
    path: list[str | int] = []
    for position, part in enumerate(loc):
        if isinstance(data, dict):
            if part in data:
                data = data[part]
            elif data.get("structure") == part:  # which member of the union it is
                continue
            elif position == len(loc) - 1:
                data = None
            else:
                continue
        elif isinstance(data, (list, tuple)) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue
        path.append(part)
    return tuple(path)


def _keys(table: _Path, data: Any, root: type[BaseModel]) -> list[str]:
    """Keys that the table at this path may have."""
    model = root
    names = [part for part in table if isinstance(part, str)]
    if names[-1:] == ["where"]:
        model = Where
    elif names:
        model = get_args(root.model_fields[names[0]].annotation)[0]
    if names[-1:] == ["with"] or names[-1:] == ["structure"]:
        for part in table:
            data = data[part]
        return keys_of(data["structure"])
    return [field.serialization_alias or name for name, field in model.model_fields.items()]


def _show(path: _Path) -> str:
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")
