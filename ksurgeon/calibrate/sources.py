"""Where examples come from: files, folders, libraries of data sets, and Python functions."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from ksurgeon.calibrate.arrays import SPLITS, open_arrays
from ksurgeon.calibrate.examples import (
    FILES,
    LABELS,
    PICTURES,
    TEXTS,
    Example,
    Modality,
    Source,
    find_key,
    of_records,
)
from ksurgeon.calibrate.pictures import as_rgb, open_picture
from ksurgeon.errors import DataError
from ksurgeon.files import encoding_of
from ksurgeon.models.functions import find_function, working_directory

__all__ = ["modality_of", "open_source", "resolve"]

_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


def open_source(data: Any, limit: int | None = None) -> Source:
    """Open training data.

    Args:
        data: a file (``.txt`` a text a line, ``.jsonl``, ``.parquet``, ``.csv`` or ``.tsv`` with a header), a
            folder of pictures (their folders are the classes where there are some), a folder of IDX files or
            of CIFAR's binary version (``FOLDER@test`` for the test split), a folder that ``datasets`` saved,
            ``torchvision:CLASS@FOLDER``, ``datasets:NAME``,
            ``package.module:function`` or ``FILE.py:function`` for a function that returns examples, or
            examples in Python, or a function that gives them: a sequence or iterable of texts, of images of
            PIL, of mappings, of tensors, or of pairs of one of these and a label.
        limit: the first so many examples are enough.

    Raises:
        DataError: nothing is there, it cannot be read, or it is empty.
    """
    found = resolve(data, limit)
    source = found if isinstance(found, Source) else _from_examples(found, name_of(data), limit)
    if limit is not None:
        source.length = min(source.length, limit)
    if not source.length:
        more = f" ({len(source.broken)} could not be read: {source.broken[0]})" if source.broken else ""
        raise DataError(f"{source.name} holds no example{more}; at least one is needed")
    return source


def resolve(data: Any, limit: int | None = None) -> Any:
    """What a name stands for: a ``Source``, or what the function of that name gives; other data as they are.

    Raises:
        DataError: nothing is there, it cannot be read, or the function raised.
    """
    if isinstance(data, Path):
        return _from_path(data, limit)
    if isinstance(data, str):
        prefix, colon, rest = data.partition(":")
        if colon and prefix == "torchvision":
            return _torchvision(rest, data)
        if colon and prefix == "datasets":
            return _datasets(rest, data)
        if not colon or Path(data).exists():
            return _from_path(Path(data), limit)
        return resolve(_called(find_function(data, DataError), data), limit)
    if isinstance(data, dict) and type(data).__module__.startswith("datasets."):
        return _from_datasets(data, name_of(data), "")
    is_function = callable(data) and not any(hasattr(data, name) for name in ("__iter__", "__getitem__"))
    if is_function and not isinstance(data, (Source, Tensor)):
        return resolve(_called(data, name_of(data)), limit)
    return data


def name_of(data: Any) -> str:
    """What data are called in messages."""
    return str(data) if isinstance(data, (str, Path)) else f"the {type(data).__name__} given"


def _called(function: Callable[[], Any], name: str) -> Any:
    try:
        with working_directory():
            return function()
    except Exception as error:
        raise DataError(f"{name} raised {type(error).__name__}: {error}") from error


def _from_path(path: Path, limit: int | None) -> Source:
    if path.is_dir():
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return _datasets(str(path), str(path))
        return _pictures(path) if (arrays := open_arrays(path)) is None else arrays
    folder, at, split = str(path).rpartition("@")
    if at and Path(folder).is_dir():
        if split not in SPLITS or (found := open_arrays(Path(folder), split)) is None:
            raise DataError(
                f"{path}: {' and '.join(SPLITS)} are splits of a folder of IDX files or of CIFAR's binary "
                "version; of images, name the folder of the split"
            )
        return found
    if not path.is_file():
        raise DataError(
            f"there is no file or folder {path} in {Path.cwd()}; data is a .txt, .jsonl, .parquet, .csv or "
            ".tsv file, a folder of images or arrays, torchvision:CLASS@FOLDER, datasets:NAME or a function"
        )
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _json_lines(path)
        case ".parquet":
            return _datasets_file("parquet", path)
        case ".csv" | ".tsv":
            return _table(path)
        case ".txt" | ".text" | "":
            return _lines(path, limit)
    raise DataError(f"{path}: files of data end in .txt, .jsonl, .parquet, .csv or .tsv")


def _lines(path: Path, limit: int | None) -> Source:
    try:
        with path.open(encoding=encoding_of(path)) as stream:
            texts = list(islice((stripped for line in stream if (stripped := line.strip())), limit))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return Source(
        str(path), "text", len(texts), lambda i: Example(texts[i]), lambda i: f"{path}, text {i + 1}"
    )


def _json_lines(path: Path) -> Source:
    records, numbers, broken = [], [], []
    try:
        encoding = encoding_of(path)
        with path.open("rb") as raw:
            # UTF-8 line by line, so that a damaged line is one example.
            lines: Iterable[str | bytes] = raw if encoding == "utf-8-sig" else TextIOWrapper(raw, encoding)
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise ValueError(f"expected an object, got {type(record).__name__}")
                except (ValueError, RecursionError) as error:
                    broken.append(f"{path}, line {number}: {error}")
                    continue
                records.append(record)
                numbers.append(number)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    source = of_records(records, str(path), lambda i: f"{path}, line {numbers[i]}", path.parent)
    source.broken = broken
    return source


def _table(path: Path) -> Source:
    """A table with a header; an audio manifest is one with a column ``path`` or ``audio``."""
    try:
        with path.open(encoding=encoding_of(path), newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return of_records(rows, str(path), lambda i: f"{path}, row {i + 1}", path.parent)


def _pictures(folder: Path) -> Source:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    if not files:
        raise DataError(
            f"the folder {folder} holds no images ({', '.join(sorted(PICTURES))}) and no data set that "
            "datasets saved"
        )
    above = [file.relative_to(folder).parts[:-1] for file in files]
    classes = sorted({parts[0] for parts in above}) if all(above) else None
    splits = [name for name in classes or () if name.lower() in _SPLITS]
    if classes and len(splits) == len(classes) > 1:
        raise DataError(
            f"the folders in {folder} are splits, not classes: {', '.join(splits)}; name one, such as "
            f"{folder / splits[-1]}, and another as test data where a recipe takes them"
        )

    def read(i: int) -> Example:
        return Example(open_picture(files[i]), classes.index(above[i][0]) if classes else None)

    return Source(str(folder), "image", len(files), read, lambda i: str(files[i]), classes)


def _torchvision(rest: str, name: str) -> Source:
    import torchvision

    made, at, folder = rest.partition("@")
    cls = getattr(torchvision.datasets, made, None)
    if cls is None or not at:
        raise DataError(
            f"{name}: expected torchvision:CLASS@FOLDER with a class of torchvision.datasets, such as "
            "torchvision:CIFAR10@data"
        )
    try:
        pictures = cls(folder)
    except Exception as error:
        raise DataError(f"{name}: {type(error).__name__}: {error}") from error
    return _from_examples(pictures, name, None)


def _datasets(where: str, name: str) -> Source:
    datasets = _import_datasets(name)
    place, _, split = where.partition("@")
    try:
        loaded = datasets.load_from_disk(place) if Path(place).is_dir() else datasets.load_dataset(place)
    except Exception as error:
        raise DataError(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    return _from_datasets(loaded, name, split)


def _datasets_file(kind: str, path: Path) -> Source:
    datasets = _import_datasets(str(path))
    try:
        loaded = datasets.Dataset.from_parquet(str(path))
    except Exception as error:
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    return _from_datasets(loaded, str(path), "")


def _from_datasets(loaded: Any, name: str, split: str) -> Source:
    if isinstance(loaded, dict):
        split = split or ("train" if "train" in loaded else next(iter(loaded), ""))
        if split not in loaded:
            raise DataError(f'{name}: no split "{split}"; there are {", ".join(loaded)}')
        loaded = loaded[split]
    source = of_records(loaded, name, lambda i: f"{name}, row {i + 1}", None)
    label = next((key for key in LABELS if key in loaded.features), None)
    names = getattr(loaded.features[label], "names", None) if label else None
    source.classes = list(names) if names else source.classes
    return source


def _import_datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{name} needs the library datasets: pip install 'ksurgeon[train]'") from error
    return datasets


def _from_examples(data: Any, name: str, limit: int | None) -> Source:
    """Examples in Python; an iterable without a length is read to its end, or to the limit."""
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        try:
            data = list(islice(data, limit))
        except TypeError as error:
            raise DataError(
                f"{name} gives no examples; data in Python is a sequence, an iterable, or a tensor"
            ) from error
        except Exception as error:
            raise DataError(f"{name} broke off: {type(error).__name__}: {error}") from error
    if not len(data):
        return Source(name, "tensors", 0, lambda i: Example(None), str)
    modality = modality_of(data[0])
    if modality is None:
        return of_records(data, name, lambda i: f"{name}, example {i}", None)

    def read(i: int) -> Example:
        value, label = _split(data[i])
        return Example(as_rgb(value) if modality == "image" else value, label)

    classes = getattr(data, "classes", None)
    return Source(
        name,
        modality,
        len(data),
        read,
        lambda i: f"{name}, example {i}",
        list(classes) if isinstance(classes, (list, tuple)) else None,
    )


def modality_of(example: Any) -> Modality | None:
    """What an example in Python is, with its label or without; None for a record, whose keys tell."""
    first = _split(example)[0]
    if isinstance(first, str) or (isinstance(first, (tuple, list)) and first and isinstance(first[0], str)):
        return "text"
    if hasattr(first, "convert"):
        return "image"
    if isinstance(first, Mapping) and find_key(first, (*TEXTS, *FILES)) and not _has_tensors(first):
        return None
    return "tensors"


def _split(example: Any) -> tuple[Any, Any]:
    """An example and its label: a pair whose second part is a number or a tensor of integers."""
    if isinstance(example, (tuple, list)) and len(example) == 2 and not isinstance(example[1], str):
        return example[0], example[1]
    return example, None


def _has_tensors(example: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in example.values())
