"""Where examples come from: files, folders, libraries of data sets, and Python functions."""

import csv
import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ksurgeon.errors import DataError
from ksurgeon.models.functions import find_function
from ksurgeon.train.examples import (
    FILES,
    LABELS,
    PICTURES,
    TEXTS,
    Example,
    Modality,
    Source,
    find_key,
    of_records,
    open_picture,
)

__all__ = ["open_source"]


def open_source(data: Any, limit: int | None = None) -> Source:
    """Open training data.

    Args:
        data: a file (``.txt`` a text a line, ``.jsonl``, ``.parquet``, ``.csv`` or ``.tsv`` with a header), a
            folder of pictures (their folders are the classes where there are some), a folder that
            ``datasets`` saved, ``torchvision:CLASS@FOLDER``, ``datasets:NAME``,
            ``package.module:function`` or ``FILE.py:function`` for a function that returns examples, or
            examples in Python: a sequence or iterable of texts, of mappings, of tensors, or of pairs of
            one of these and a label.
        limit: the first so many examples are enough.

    Raises:
        DataError: nothing is there, it cannot be read, or it is empty.
    """
    source = _open(data, limit)
    if limit is not None:
        source.length = min(source.length, limit)
    if not source.length:
        more = f" ({len(source.broken)} could not be read: {source.broken[0]})" if source.broken else ""
        raise DataError(f"{source.name} holds no example{more}; training needs some")
    return source


def _open(data: Any, limit: int | None) -> Source:
    if isinstance(data, Source):
        return data
    if isinstance(data, Path):
        return _from_path(data, limit)
    if not isinstance(data, str):
        return _from_examples(data, f"the {type(data).__name__} given", limit)
    prefix, colon, rest = data.partition(":")
    if colon and prefix == "torchvision":
        return _torchvision(rest, data)
    if colon and prefix == "datasets":
        return _datasets(rest, data)
    if colon and not Path(data).exists():
        function = find_function(data, DataError)
        try:
            made = function()
        except Exception as error:
            raise DataError(f"{data} raised {type(error).__name__}: {error}") from error
        return _open(made, limit) if isinstance(made, (str, Path)) else _from_examples(made, data, limit)
    return _from_path(Path(data), limit)


def _from_path(path: Path, limit: int | None) -> Source:
    if path.is_dir():
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return _datasets(str(path), str(path))
        return _pictures(path)
    if not path.is_file():
        raise DataError(
            f"there is no file or folder {path}; data is a .txt, .jsonl, .parquet, .csv or .tsv file, a "
            "folder of pictures, torchvision:CLASS@FOLDER, datasets:NAME or package.module:function"
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
        with path.open(encoding="utf-8") as stream:
            texts = list(islice((stripped for line in stream if (stripped := line.strip())), limit))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return Source(
        str(path), "text", len(texts), lambda i: Example(texts[i]), lambda i: f"{path}, text {i + 1}"
    )


def _json_lines(path: Path) -> Source:
    records, numbers, broken = [], [], []
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
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
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    source = of_records(records, str(path), lambda i: f"{path}, line {numbers[i]}", path.parent)
    source.broken = broken
    return source


def _table(path: Path) -> Source:
    """A table with a header; an audio manifest is one with a column ``path`` or ``audio``."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return of_records(rows, str(path), lambda i: f"{path}, row {i + 1}", path.parent)


def _pictures(folder: Path) -> Source:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    if not files:
        raise DataError(
            f"the folder {folder} holds no pictures ({', '.join(sorted(PICTURES))}) and no data set that "
            "datasets saved"
        )
    above = [file.relative_to(folder).parts[:-1] for file in files]
    classes = sorted({parts[0] for parts in above}) if all(above) else None

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
    first = _split(data[0])[0]
    if isinstance(first, str) or (isinstance(first, (tuple, list)) and isinstance(first[0], str)):
        modality: Modality = "text"
    elif hasattr(first, "convert"):
        modality = "image"
    elif isinstance(first, Mapping) and find_key(first, (*TEXTS, *FILES)) and not _has_tensors(first):
        return of_records(data, name, lambda i: f"{name}, example {i}", None)
    else:
        modality = "tensors"

    def read(i: int) -> Example:
        value, label = _split(data[i])
        return Example(value.convert("RGB") if modality == "image" else value, label)

    classes = getattr(data, "classes", None)
    return Source(
        name,
        modality,
        len(data),
        read,
        lambda i: f"{name}, example {i}",
        list(classes) if isinstance(classes, (list, tuple)) else None,
    )


def _split(example: Any) -> tuple[Any, Any]:
    """An example and its label: a pair whose second part is a number or a tensor of integers."""
    if isinstance(example, (tuple, list)) and len(example) == 2 and not isinstance(example[1], str):
        return example[0], example[1]
    return example, None


def _has_tensors(example: Mapping[str, Any]) -> bool:
    import torch

    return any(isinstance(value, torch.Tensor) for value in example.values())
