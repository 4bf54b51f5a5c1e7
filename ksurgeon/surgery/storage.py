"""Save and load converted models: ``model.safetensors`` and ``ksurgeon.json``, all or nothing."""

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from ksurgeon.errors import FolderError, RecordError, SurgeryError
from ksurgeon.models.bounds import bounded, numel_of
from ksurgeon.models.companions import copy_companions, is_companion
from ksurgeon.models.opening import build, require_leave, resolve_source
from ksurgeon.models.source import Source
from ksurgeon.surgery.current import current_record
from ksurgeon.surgery.folders import require_writable, written_whole
from ksurgeon.surgery.operate import undo_all
from ksurgeon.surgery.readable import differences, require_builds, require_readable
from ksurgeon.surgery.record import Record, attach, signature
from ksurgeon.surgery.record_file import RECORD_FILE, parse_record, read_record
from ksurgeon.surgery.replay import replay
from ksurgeon.surgery.sharing import share, sharing, unshare
from ksurgeon.surgery.tensors import (
    TENSOR_FILE,
    Stored,
    buffer_dtypes,
    load_tensors,
    open_tensors,
    set_dtype,
    tensors_of,
)

__all__ = ["check_target", "load", "save", "writers"]

_LONGEST_NAME, _MOST_FURTHER = 1000, 10**5
_FILES = {RECORD_FILE, TENSOR_FILE, "config.json", "generation_config.json", "README.md"}

writers: list[Callable[[nn.Module, Record, Path], None]] = []
"""Called with model, record and folder by every ``save``: what other libraries want to find beside the
tensors."""


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    source: str | Source | None = None,
    files_from: str | Path | None = None,
) -> Path:
    """Write a converted model to a folder: its tensors, and the record that rebuilds it.

    The folder is written beside its place and exchanged with what is there, so that an interrupted or failed
    save leaves what was there before, and readers find the one or the other. What could not be loaded again
    is refused before anything is written.

    Args:
        model: a model that ``convert`` changed.
        folder: new, empty, or one that an earlier ``save`` wrote and that is replaced.
        source: where the architecture comes from, if the conversion did not know.
        files_from: a folder, or an ID on the Hugging Face hub, whose tokenizer, processor and the like are
            copied along.

    Raises:
        SurgeryError: the model was not converted, or what became of it since cannot be loaded again; the
            message says why.
        FolderError: the folder holds something else, or cannot be written (disk full, no permission).
    """
    record = current_record(model)
    if record is None:
        raise SurgeryError(
            "this model was not converted: convert it first (ksurgeon.convert or replace_modules), or "
            "save its state_dict as usual"
        )
    if source is not None:
        record.source = resolve_source(model, source)
        require_builds(record.source, record.architecture)
    require_readable(model, record)
    record.shared = sharing(model)
    state = model.state_dict()
    record.buffers = {
        name: str(buffer.dtype).removeprefix("torch.")
        for name, buffer in model.named_buffers()
        if name not in state
    }
    target = check_target(folder)
    tensors = tensors_of(model)
    parse_record(json.loads(record.model_dump_json()), target / RECORD_FILE)  # or it could not be read again
    with written_whole(target) as temporary:
        save_file(tensors, temporary / TENSOR_FILE, metadata={"format": "pt"})
        record.files = copy_companions(str(files_from), temporary) if files_from is not None else []
        text = record.model_dump_json(indent=1, exclude_defaults=False)
        (temporary / RECORD_FILE).write_text(text + "\n", encoding="utf-8")
        for writer in writers:
            writer(model, record, temporary)
    return target


def load(folder: str | Path, model: nn.Module | None = None, *, trust_remote_code: bool = False) -> nn.Module:
    """Load a converted model: build the architecture, replay the record, load the tensors.

    Code that the record names, a function or model code in a repository, is run only where
    ``trust_remote_code`` allows it; models of timm, torchvision and transformers need no leave.

    Args:
        folder: what ``save`` wrote, or ``save_pretrained`` of a converted model of transformers.
        model: a fresh, unconverted model of the same architecture, changed in place; needed only if the
            record does not say where the architecture comes from.
        trust_remote_code: whether the function that the record names may be called, or model code be run that
            lies in the repository that was converted. It also lifts the limits on the model's sizes.

    Returns:
        The model in eval mode.

    Raises:
        RecordError: a damaged folder, a record of another architecture, one that names no source or one that
            may not be used, or weights that are not finite; a given model is then as it was.
    """

    def check(record: Record) -> None:
        """What is said before anything about the tensors."""
        if model is not None:
            return
        if record.source is None:
            raise RecordError(
                f"{folder}: the record does not say where the architecture comes from; build the model and "
                "call load(folder, model=…), or save it with source='package.module:function'"
            )
        if trust_remote_code:
            record.source = record.source.as_trusted()
        require_leave(record.source, folder)

    record, stored = _open(Path(folder), check)
    tensors = stored.read()
    room = _room(tensors, record)
    if model is None:
        assert record.source is not None
        numel = numel_of(record.architecture) or room + sum(o.parameters_before for o in record.operations)
        number = len(record.architecture) or len(tensors)
        with nullcontext() if trust_remote_code else bounded(numel, number):
            model = build(record.source)
    if record.architecture:
        _check_architecture(model, record, folder)
    record.architecture = signature(model)
    done: list[Any] = list(replay(model, record, room))
    try:
        if record.shared is not None:
            for slot in unshare(model, record.shared):
                slot.do()
                done.append(slot)
            for name, first in record.shared.items():
                done.append(share(model, name, first))
                done[-1].do()
        dtypes = buffer_dtypes(model, record.buffers, folder)
        load_tensors(model, tensors, folder)
    except RecursionError as error:
        undo_all(done)
        raise RecordError(f"{folder}: the record puts a part of the model into itself") from error
    except BaseException:
        undo_all(done)
        raise
    for name, dtype in dtypes.items():
        set_dtype(model, name, dtype)
    record.shared = None  # every save finds it out anew
    attach(model, record)
    return model.eval()


def _room(tensors: Mapping[str, Tensor], record: Record) -> int:
    """How many numbers the model's tensors have, those counted again that have further names.

    Raises:
        RecordError: there are more of these than a model has.
    """
    further: dict[str, list[str]] = {}
    for name, first in (record.shared or {}).items():
        further.setdefault(first, []).append(name)
    room = seen = 0
    for own, tensor in tensors.items():
        names = [own]
        while names:
            name, seen = names.pop(), seen + 1
            if seen > len(tensors) + _MOST_FURTHER or len(name) > _LONGEST_NAME:
                raise RecordError(
                    "the record shares more than a model has: it is damaged; convert the model again"
                )
            room += tensor.numel()
            inside = name if further else ""
            while inside:
                names += [other + name.removeprefix(inside) for other in further.get(inside, ())]
                inside = inside.rpartition(".")[0]
    return room


def _open(folder: Path, check: Callable[[Record], None]) -> tuple[Record, Stored]:
    """Record, once it is checked, and tensors of one and the same save, also while another one replaces the
    folder."""
    while True:
        before = _identity(folder)
        try:
            check(record := read_record(folder))
            stored = open_tensors(folder)
        except RecordError:
            if _identity(folder) == before:
                raise
            continue
        if _identity(folder) == before:
            return record, stored


def _identity(folder: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        facts = folder.stat()
        return facts.st_dev, facts.st_ino
    return None


def check_target(folder: str | Path) -> Path:
    """The folder as a path, once it is known that a save may go there.

    Raises:
        FolderError: something else is there, or nothing can be written there.
    """
    target = Path(folder)
    require_writable(target)
    if target.is_symlink() and not target.exists():
        raise FolderError(f"{target} is a link that leads nowhere; give another folder")
    if not target.exists():
        return target
    if not target.is_dir():
        raise FolderError(f"{target} is a file; give a new folder")
    if target.samefile(Path.cwd()):
        raise FolderError(f"{target} is the current folder, which a save would replace; name a folder in it")
    names, own = {entry.name for entry in target.iterdir()}, _files_of(target)
    strange = sorted(names - {name.partition("/")[0] for name in own}) or sorted(_entries(target) - own)
    if names and (strange or RECORD_FILE not in names):
        strange = strange or sorted(names)
        raise FolderError(
            f"{target} holds something that ksurgeon did not write ({', '.join(strange[:3])}"
            f"{', …' if len(strange) > 3 else ''}); give a new folder, or empty this one"
        )
    return target


def _files_of(target: Path) -> set[str]:
    """Files that a save may have written into the folder, by their paths in it."""
    try:
        copied = read_record(target).files
    except RecordError:
        copied = []
    return _FILES | {name for name in copied if is_companion(name)}


def _entries(folder: Path) -> set[str]:
    """Files in a folder and below, and folders that hold nothing, by their paths in it."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    }


def _check_architecture(model: nn.Module, record: Record, folder: str | Path) -> None:
    if different := differences(signature(model), record.architecture):
        raise RecordError(
            f"{folder} was made from another architecture than this {type(model).__name__}: {different}; "
            "build the model that was converted"
        )
