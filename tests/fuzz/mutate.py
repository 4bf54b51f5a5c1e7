"""Ways to damage plain data, text and bytes, each chosen by a seeded generator."""

import copy
import json
from random import Random

DIGITS, DEEP = "@digits@", "@deep@"
ODD = (
    None, True, False, 0, -1, 1, 2, 3, 64, 65, 4096, 10**6, 10**9, 2**31 - 1, 2**31, 2**53, 2**61 - 1, 2**63,
    2**70, -(2**63), 0.5, -1.5, 1e308, float("inf"), float("nan"), "", "x", "auto", "float8_e4m3fn", "load",
    "a\0b", "\ud800", "../../x", "/etc/passwd", "re:(\\w+_?)+x", "re:((a*)*)*b", "re:(", "re:" + "(" * 3000,
    "re:a{99999999999}", "re:(?<=.*)a", ">= 99999999999999999999", ">= \u0663", "os:abort",
    "tests.fuzz.formats:trap", "tests/fuzz/formats.py:trap", "\x1b[2J[link=x]", "é" * 300, "9" * 5000, DIGITS,
    DEEP, [], {}, [[]], [None], [1] * 70, [2] * 40, [1] * 3000, [[1, 10**9, 16, 1], [1, 16, 10**9, 1]],
    [[2**62, 1, 1, 1]], [16, 16], [10**5, 10**5], [10**6, 16], [-1, 16], {"": {}}, {"tensor": [10**9]},
)  # fmt: skip
"""What stands in the place of a value."""


def plain(random: Random, data: object) -> object:
    """The data with one to three of its values replaced, removed, doubled, renamed or swapped."""
    data = copy.deepcopy(data)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = list(_places(data))
        if not places:
            return random.choice(ODD)
        holder, key = random.choice(places)
        match random.randrange(8):
            case 0:
                del holder[key]
            case 1:
                other, its = random.choice(places)
                holder[key] = copy.deepcopy(other[its]) if its in _keys(other) else None
            case 2 if isinstance(holder, dict):
                holder[str(random.choice(("", key + "_", "schema", "path", "structure", "kind")))] = (
                    holder.pop(key)
                )
            case 2 | 3 if isinstance(holder, list):
                holder.extend(copy.deepcopy(holder[key]) for _ in range(random.choice((1, 1, 3, 50))))
            case 4 if isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
                holder[key] = random.choice(
                    (holder[key] + 1, -holder[key], holder[key] * 1000, holder[key] - 1)
                )
            case 4 | 5 if isinstance(holder[key], str):
                holder[key] = _text(random, holder[key])
            case _:
                holder[key] = copy.deepcopy(random.choice(ODD))
    return data


def as_json(data: object) -> bytes:
    """JSON, with what ``json`` would not write itself in the place of the marks."""
    return _marked(json.dumps(data)).encode()


def as_toml(data: object) -> bytes:
    """TOML on few lines: tables are written inline."""
    assert isinstance(data, dict)
    lines = (f"{_toml(str(key))} = {_toml(value)}" for key, value in data.items() if value is not None)
    return _marked("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def text(random: Random, content: bytes) -> bytes:
    """Bytes cut, flipped, repeated, or with something put between."""
    content = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 5))):
        place = random.randrange(len(content) + 1)
        match random.randrange(7):
            case 0:
                del content[place:]
            case 1 if place < len(content):
                content[place] = random.randrange(256)
            case 2 if place < len(content):
                content[place] ^= 1 << random.randrange(8)
            case 3:
                end = min(len(content), place + random.choice((1, 20, 400)))
                content[place:place] = content[place:end] * random.choice((1, 2, 100))
            case 4:
                del content[place : place + random.choice((1, 4, 40))]
            case _:
                content[place:place] = random.choice(_BITS)
    return bytes(content)


_BITS = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\x80", b"\r", b"\n", b'"', b"'", b",", b"{", b"-", b"e999", b"NaN",
    b"[[", b"#", b'"' * 3, b"\\u0000", b"\\ud800", b"\x1b[2J", b"\xe2\x80\xa8", b"[" * 3000, b"9" * 5000,
    b"a." * 500, b"\xff" * 8, b"0x" + b"f" * 5000, b"x" * 100_000,
)  # fmt: skip


def _places(data: object):
    waiting = [data]
    while waiting:
        holder = waiting.pop()
        for key in _keys(holder):
            yield holder, key
            if isinstance(holder[key], (dict, list)):
                waiting.append(holder[key])


def _keys(holder):
    return (
        list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
    )


def _text(random: Random, value: str) -> str:
    place = random.randrange(len(value) + 1)
    return random.choice((value[:place], value[place:], value + value, value[:place] + "." + value[place:]))


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items() if v is not None) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value if item is not None) + "]"
    return json.dumps(value, ensure_ascii=isinstance(value, str) and "\ud800" not in value).replace(
        "Infinity", "inf"
    )


def _marked(written: str) -> str:
    return written.replace(f'"{DIGITS}"', "9" * 5000).replace(f'"{DEEP}"', "[" * 3000 + "]" * 3000)
