"""Examples, and how mappings become such: what each key holds is told by its name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, Protocol

from ksurgeon.calibrate.pictures import as_rgb, open_picture
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
    "joined",
    "of_records",
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

    def unreadable(self, number: int, error: Exception) -> str:
        """What is said of an example that reading raised this of."""
        first = (str(error).strip() or repr(error)).splitlines()[0]
        return f"{self.names(number)}: {type(error).__name__}: {first}"


def joined(first: Source, second: Source) -> Source:
    """The examples of one source and then those of another.

    Raises:
        DataError: their values are of different kinds, or their classes are others.
    """
    for what, one, other in (
        ("examples", first.modality, second.modality),
        ("classes", first.classes, second.classes),
    ):
        if one != other:
            raise DataError(f"{first.name} and {second.name} hold different {what}: {one} and {other}")
    many = len(first)

    def read(i: int) -> Example:
        return first.read(i) if i < many else second.read(i - many)

    def names(i: int) -> str:
        return first.names(i) if i < many else second.names(i - many)

    return Source(
        f"{first.name} and {second.name}",
        first.modality,
        many + len(second),
        read,
        names,
        first.classes,
        [*first.broken, *second.broken],
    )


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
                value = as_rgb(value)
            elif not sound and isinstance(
                value, Mapping
            ):  # as datasets stores an image that it does not decode
                value = open_picture(BytesIO(value["bytes"]) if value.get("bytes") else value["path"])
            return Example(value, _label(record, label), record.get(target) if target else None)

        return Source(name, modality, len(records), load, names)
    if text is None:
        raise DataError(
            f"{name} has the columns {', '.join(map(str, keys))}; expected one of {', '.join(TEXTS)} for "
            f"texts or {', '.join(FILES)} for images and sounds"
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
    """A number, also where the file has only its digits; a word is left as it is."""
    value = record.get(key) if key else None
    if isinstance(value, str):
        for number in (int, float):
            with suppress(ValueError):
                return number(value)
    return value
