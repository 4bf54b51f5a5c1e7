"""Standard streams that can be written to: closed ones, those in ASCII, and text with escapes in it."""

import codecs
import os
import sys
import unicodedata

__all__ = ["prepare_streams", "printable"]

_HIDDEN = {
    *range(0x20), *range(0x7F, 0xA0),  # controls, and those of eight bits
    0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A),  # directions of text
    0x2028, 0x2029,
} - {0x09, 0x0A}  # fmt: skip
_VISIBLE = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in sorted(_HIDDEN)}
_PLAIN = {
    "→": "->", "←": "<-", "×": "x", "…": "...", "–": "-", "—": "-", "−": "-", "·": "-", "≤": "<=", "≥": ">=",
    "≈": "~", "\u2018": "'", "\u2019": "'", "“": '"', "”": '"', "•": "*",
    "█": "#", "▉": "#", "▊": "#", "▋": "#",
    "▌": "#", "▍": "#", "▎": "#", "▏": "#", "━": "-", "╸": "-", "╺": "-", "─": "-", "│": "|",
}  # fmt: skip


def printable(text: str) -> str:
    """The text with every control character, but for tabs and ends of lines, written out as ``\\x1b``."""
    return text.translate(_VISIBLE)


def prepare_streams() -> None:
    """Open what is closed to nowhere, and let text that a stream's encoding lacks be written in ASCII."""
    codecs.register_error("ksurgeon", _in_ascii)
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:  # so that no file that is opened later gets what is printed
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="ksurgeon")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte of a file's name that is no UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    simple = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return _PLAIN.get(letter) or simple or "?"
