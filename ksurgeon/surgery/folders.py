"""Folders that are written whole: beside their place first, then exchanged with what is there in one step."""

import ctypes
import errno
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ksurgeon.errors import FolderError

__all__ = ["cause_of", "require_writable", "written_whole"]

_SUFFIX = ".ksurgeon-part"
_NAME_BYTES = 120  # of a target's name in those of the folders beside it


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the target's place if the block succeeds, and goes if it does not.

    Where the system can exchange two folders in one step, there is no moment without the target. What a
    process left behind that was killed while it wrote to the same target is removed.

    Raises:
        FolderError: the folder cannot be written; what was there is there still.
    """
    target = target.resolve()
    temporary, lock = None, None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary, lock = _temporary(target)
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
        _remove_litter(target)
    except (OSError, SafetensorError) as error:
        if isinstance(error, FolderError):
            raise
        raise FolderError(
            f"{target} could not be written: {cause_of(error)}; nothing was changed there"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def require_writable(target: Path) -> None:
    """Return if a folder or file can be written there, which is tried; nothing of the trial stays.

    Raises:
        FolderError: no permission, a name too long, a file where a folder would have to be, no such place.
    """
    target = Path(os.path.abspath(target.resolve()))
    above = next(folder for folder in target.parents if os.path.lexists(folder))
    if above.exists() and not above.is_dir():
        raise FolderError(f"{target} cannot be written: {above} is a file; give another place")
    if os.path.ismount(target):
        raise FolderError(f"{target} is where a disk begins and cannot be replaced; name a folder in it")
    trial: Path | None = None
    try:
        trial = Path(tempfile.mkdtemp(prefix=".", suffix=_SUFFIX, dir=above))
        (trial / target.relative_to(above)).mkdir(parents=True)
    except OSError as error:
        raise FolderError(f"{target} cannot be written: {cause_of(error)}; give another place") from error
    finally:
        if trial is not None:
            shutil.rmtree(trial, ignore_errors=True)


def cause_of(error: Exception) -> str:
    """Why something could not be written, in a few words."""
    number = getattr(error, "errno", None)
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if number in full or "No space left" in str(error) or "os error 27" in str(error):
        return "no space is left on the disk"
    return getattr(error, "strerror", None) or str(error)


def _exchange(temporary: Path, target: Path) -> None:
    """Put ``temporary`` in the place of ``target``, which lies at ``temporary`` then if it was there."""
    if not target.exists():
        try:
            temporary.rename(target)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process was quicker
                raise
    if _swap(temporary, target):
        return
    old = Path(tempfile.mkdtemp(prefix=_prefix(target), suffix=_SUFFIX, dir=target.parent))
    try:
        target.rename(old)
        temporary.rename(target)
    except BaseException:
        if not target.exists():
            old.rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot."""
    call = _system_swap()
    if call is None:
        return False
    ctypes.set_errno(0)
    if call(os.fsencode(one), os.fsencode(other)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _system_swap() -> Callable[[bytes, bytes], int] | None:
    """The system's own call, where there is one."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            swap = library.renamex_np
            swap.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint)
            return lambda one, other: int(swap(one, other, 2))  # RENAME_SWAP
        exchange = library.renameat2
        exchange.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
        return lambda one, other: int(exchange(-100, one, -100, other, 2))  # AT_FDCWD, RENAME_EXCHANGE
    except (OSError, AttributeError, TypeError):  # Windows, and C libraries without it
        return None


def _prefix(target: Path) -> str:
    """How the names of temporary folders for this target begin."""
    name = target.name
    if len(os.fsencode(name)) > _NAME_BYTES:  # the whole name may take 255 bytes on most systems
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f".{name}."


def _temporary(target: Path) -> tuple[Path, int | None]:
    """A folder beside the target, and the lock that tells others that its process lives."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(target), suffix=_SUFFIX, dir=target.parent))
        lock = _lock(folder, wait=True)
        if folder.exists():  # or another process took it for litter before it was locked
            return folder, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, wait: bool) -> int | None:
    """A lock that goes with the process; None where another has it, or where there is no such thing."""
    try:
        import fcntl
    except ImportError:
        return None
    number = None
    try:
        number = os.open(folder, os.O_RDONLY)
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if number is not None:
            os.close(number)
        return None
    return number


def _remove_litter(target: Path) -> None:
    """Remove temporary folders of this target whose process was killed; others are left alone."""
    prefix = _prefix(target)
    for entry in target.parent.iterdir():
        middle = entry.name.removeprefix(prefix).removesuffix(_SUFFIX)
        if entry.name != prefix + middle + _SUFFIX or len(middle) != 8 or entry.is_symlink():
            continue
        if not entry.is_dir() or (hasattr(os, "geteuid") and entry.stat().st_uid != os.geteuid()):
            continue
        lock = _lock(entry, wait=False)
        if lock is not None:
            shutil.rmtree(entry, ignore_errors=True)
            os.close(lock)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
