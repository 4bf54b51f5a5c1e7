"""Save and load converted models: ``model.safetensors`` and ``ksurgeon.json``, all or nothing."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ksurgeon.errors import FolderError, RecordError, SurgeryError
from ksurgeon.models.companions import copy_companions
from ksurgeon.models.opening import build, resolve_source
from ksurgeon.models.source import Source
from ksurgeon.surgery.current import current_record
from ksurgeon.surgery.operate import undo_all
from ksurgeon.surgery.record import Record, attach, signature
from ksurgeon.surgery.record_file import RECORD_FILE, read_record
from ksurgeon.surgery.replay import replay
from ksurgeon.surgery.tensors import TENSOR_FILE, load_tensors, read_tensors, set_dtype, tensors_of

__all__ = ["check_target", "load", "save", "writers", "written_whole"]

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

    The folder is written beside its place and renamed, so that an interrupted or failed save leaves what
    was there before.

    Args:
        model: a model that ``convert`` changed.
        folder: new, empty, or one that an earlier ``save`` wrote and that is replaced.
        source: where the architecture comes from, if the conversion did not know.
        files_from: a folder, or an ID on the Hugging Face hub, whose tokenizer, processor and the like are
            copied along.

    Raises:
        SurgeryError: the model was not converted.
        FolderError: the folder holds something else, or cannot be written (disk full, no permission).
    """
    record = current_record(model)
    if record is None:
        raise SurgeryError(
            "this model has no record of surgery: convert it first (ksurgeon.convert or replace_modules), or "
            "save its state_dict as usual"
        )
    if source is not None:
        record.source = resolve_source(model, source)
    state = model.state_dict()
    record.buffers = {
        name: str(buffer.dtype).removeprefix("torch.")
        for name, buffer in model.named_buffers()
        if name not in state
    }
    target = check_target(folder)
    with written_whole(target) as temporary:
        save_file(tensors_of(model), temporary / TENSOR_FILE, metadata={"format": "pt"})
        record.files = copy_companions(str(files_from), temporary) if files_from is not None else []
        text = record.model_dump_json(indent=1, exclude_defaults=False)
        (temporary / RECORD_FILE).write_text(text + "\n", encoding="utf-8")
        for writer in writers:
            writer(model, record, temporary)
    return target


def load(folder: str | Path, model: nn.Module | None = None, *, trust_remote_code: bool = False) -> nn.Module:
    """Load a converted model: build the architecture, replay the record, load the tensors.

    A record whose source is ``package.module:function`` calls that function, as the conversion did; other
    code is run only where ``trust_remote_code`` allows it.

    Args:
        folder: what ``save`` wrote, or ``save_pretrained`` of a converted model of transformers.
        model: a fresh, unconverted model of the same architecture, changed in place; needed only if the
            record does not say where the architecture comes from.
        trust_remote_code: whether model code may be run that lies in the repository that was converted.

    Returns:
        The model in eval mode.

    Raises:
        RecordError: a damaged folder, a record of another architecture, or one that names no source; a given
            model is then as it was.
    """
    record = read_record(folder)
    if model is None:
        if record.source is None:
            raise RecordError(
                f"{folder}: the record does not say where the architecture comes from; build the model and "
                "call load(folder, model=…), or save it with source='package.module:function'"
            )
        if record.source.options.get("trust_remote_code") and not trust_remote_code:
            raise RecordError(
                f"{folder}: the model is made by code in {record.source.name}, which is not run unless you "
                "ask for it: read it, then load with trust_remote_code=True (--trust-remote-code)"
            )
        model = build(record.source)
    if record.architecture:
        _check_architecture(model, record, folder)
    record.architecture = signature(model)
    tensors = read_tensors(Path(folder))
    done = replay(model, record)
    try:
        load_tensors(model, tensors, folder)
    except BaseException:
        undo_all(done)
        raise
    for name, dtype in record.buffers.items():
        set_dtype(model, name, getattr(torch, dtype))
    attach(model, record)
    return model.eval()


def check_target(folder: str | Path) -> Path:
    """The folder as a path, once it is known that a save may go there.

    Raises:
        FolderError: something else is there.
    """
    target = Path(folder)
    if target.is_symlink() and not target.exists():
        raise FolderError(f"{target} is a link that leads nowhere; give another folder")
    if not target.exists():
        return target
    if not target.is_dir():
        raise FolderError(f"{target} is a file; give a new folder")
    if target.samefile(Path.cwd()):
        raise FolderError(f"{target} is the current folder, which a save would replace; name a folder in it")
    names = {entry.name for entry in target.iterdir()}
    if names and not (RECORD_FILE in names and names <= _files_of(target)):
        strange = sorted(names - _files_of(target)) or sorted(names)
        raise FolderError(
            f"{target} holds something that ksurgeon did not write ({', '.join(strange[:3])}"
            f"{', …' if len(strange) > 3 else ''}); give a new folder, or empty this one"
        )
    return target


def _files_of(target: Path) -> set[str]:
    """Names that a save may have written into the folder."""
    try:
        copied = read_record(target).files
    except RecordError:
        copied = []
    return _FILES | {Path(name).parts[0] for name in copied}


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the target's place if the block succeeds, and goes if it does not."""
    target = target.resolve()
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in temporary.rglob("*"):
            if file.is_symlink():  # may lead nowhere, or out of the folder
                continue
            file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
            if file.is_dir():
                continue
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        _exchange(temporary, target)
    except (OSError, SafetensorError) as error:
        raise FolderError(
            f"{target} could not be written: {_cause(error)}; nothing was changed there"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _exchange(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    try:
        target.rename(old)
        temporary.rename(target)
    except BaseException:
        if not target.exists():
            old.rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cause(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if (
        number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        or "No space left" in str(error)
        or "os error 27" in str(error)
    ):
        return "no space is left on the disk"
    return getattr(error, "strerror", None) or str(error)


def _check_architecture(model: nn.Module, record: Record, folder: str | Path) -> None:
    own, recorded = signature(model), record.architecture
    if own == recorded:
        return
    differences = [f"{name} is missing" for name in recorded if name not in own]
    differences += [f"{name} is not in the record" for name in own if name not in recorded]
    differences += [
        f"{name} is {own[name]} instead of {recorded[name]}"
        for name in recorded
        if name in own and own[name] != recorded[name]
    ]
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    raise RecordError(
        f"{folder} was made from another architecture than this {type(model).__name__}: "
        f"{'; '.join(differences[:3])}{more}; build the model that was converted"
    )
