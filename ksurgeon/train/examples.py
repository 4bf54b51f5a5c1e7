"""Examples, and how mappings become such: what each key holds is told by its name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from ksurgeon.errors import DataError

__all__ = [
    "FILES",
    "LABELS",
    "PICTURES",
    "TEXTS",
    "Example",
    "Modality",
    "Source",
    "find_key",
    "of_records",
    "open_picture",
]

Modality = Literal["text", "image", "audio", "tensors"]
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_SOUNDS = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au"})
TEXTS = ("text", "sentence", "sentence1", "content", "premise", "question", "source")
_SECONDS = ("sentence2", "text2", "text_pair", "hypothesis")
_TARGETS = ("target", "translation", "summary")
LABELS = ("label", "labels", "class", "score")
FILES = ("image", "img", "audio", "path", "file", "file_name")


@dataclass(frozen=True)
class Example:
    """One example as it was found.

    ``value`` is a text, a pair of texts, a picture of PIL, a path of a sound, or tensors as the model takes
    them; ``target`` the text that a sequence-to-sequence model is to give.
    """

    value: Any
    label: Any = None
    target: str | None = None


class _Sized(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass
class Source:
    """Examples by number.

    Attributes:
        name: what the user wrote.
        modality: what the values are.
        read: gives an example, or raises what reading it raised.
        names: gives what an unreadable example is called.
        classes: names of the classes where labels are such.
        broken: examples that could not even be listed, by name and reason.
    """

    name: str
    modality: Modality
    length: int
    read: Callable[[int], Example]
    names: Callable[[int], str]
    classes: list[str] | None = None
    broken: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return self.length


def of_records(records: _Sized, name: str, names: Callable[[int], str], base: Path | None) -> Source:
    """Examples from mappings: which key holds what is told by its name."""
    if not len(records):
        return Source(name, "text", 0, lambda i: Example(None), names)
    keys = list(records[0])
    label = find_key(keys, LABELS)
    text, file = find_key(keys, TEXTS), find_key(keys, FILES)
    if file is not None:
        first = records[0][file]
        sound = file == "audio" or (isinstance(first, str) and Path(first).suffix.lower() in _SOUNDS)
        modality: Modality = "audio" if sound else "image"
        target = find_key(keys, (*_TARGETS, *TEXTS))

        def load(i: int) -> Example:
            record = records[i]
            value = record[file]
            if isinstance(value, str):
                value = str(base / value) if base is not None else value
                value = value if sound else open_picture(value)
            elif not sound and hasattr(value, "convert"):
                value = value.convert("RGB")
            return Example(value, _label(record, label), record.get(target) if target else None)

        return Source(name, modality, len(records), load, names)
    if text is None:
        raise DataError(
            f"{name} has the columns {', '.join(map(str, keys))}; expected one of {', '.join(TEXTS)} for "
            f"texts or {', '.join(FILES)} for pictures and sounds"
        )
    second, target = find_key(keys, _SECONDS), find_key(keys, _TARGETS)

    def read(i: int) -> Example:
        record = records[i]
        value = record[text]
        if not isinstance(value, str):
            raise ValueError(f"{text} is {type(value).__name__}, no text")
        pair = (value, record[second]) if second else value
        return Example(pair, _label(record, label), record.get(target) if target else None)

    return Source(name, "text", len(records), read, names)


def find_key(keys: Iterable[str], wanted: Sequence[str]) -> str | None:
    there = set(keys)
    return next((key for key in wanted if key in there), None)


def _label(record: Mapping[str, Any], key: str | None) -> Any:
    value = record.get(key) if key else None
    if not isinstance(value, str):
        return value
    try:
        return int(value)
    except ValueError:
        return float(value)


def open_picture(file: Any) -> Any:
    from PIL import Image

    with Image.open(file) as picture:
        return picture.convert("RGB")
